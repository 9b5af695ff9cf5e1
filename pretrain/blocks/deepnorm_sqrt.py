"""DeepNorm with the exponents 1/2 of GLM-130B (Zeng et al. 2022, arXiv 2210.02414, section 2.1)."""

from __future__ import annotations

from typing import Literal

from pretrain.blocks.base import BlockPlace
from pretrain.blocks.deepnorm import DeepNormBlock
from pretrain.blocks.registry import BLOCKS
from pretrain.registry import Section


class DeepNormSqrtConfig(Section):
    """DeepNorm with alpha = (2N)^(1/2) and beta = (2N)^(-1/2), as GLM-130B's 70 layers; models of one stack."""

    kind: Literal["deepnorm_sqrt"] = "deepnorm_sqrt"


@BLOCKS.register(DeepNormSqrtConfig)
class DeepNormSqrtBlock(DeepNormBlock):
    """2N beta / alpha = 1: DeepNet's bound where a weight's step does not shrink with its gradient, as under Adam."""

    families = frozenset({"decoder", "encoder"})

    @staticmethod
    def constants(place: BlockPlace) -> tuple[float, float]:
        return (2 * place.depth) ** (1 / 2), (2 * place.depth) ** (-1 / 2)
