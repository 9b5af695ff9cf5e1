"""KEEL (Chen & Wei 2026, arXiv 2601.19895): x_{l+1} = LN(alpha * x_l + G_l(LN(x_l))), alpha the number of sublayers."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from pretrain.blocks.base import BlockPlace
from pretrain.blocks.constant import constant
from pretrain.blocks.registry import BLOCKS
from pretrain.blocks.sequential import Branch, SequentialBlock
from pretrain.registry import Section


class KeelConfig(Section):
    """Post-LN with a weighted residual and a norm before each branch; the first layer is Pre-LN; one stack."""

    kind: Literal["keel"] = "keel"


@BLOCKS.register(KeelConfig)
class KeelBlock(SequentialBlock):
    """Xavier with gain 1 everywhere. alpha = 2N; the first two sublayers, one layer, have no alpha and no out_norm."""

    families = frozenset({"decoder", "encoder"})
    parts = ("norm", "out_norm")

    @classmethod
    def objection(cls, config: Any, model: Any) -> str | None:
        if model.encoder_layers + model.decoder_layers > 1:
            return None
        return (
            f"model.{model.family}_layers = 1 is too few for model.block.kind = {config.kind}, whose first layer is "
            f"Pre-LN and leaves its output to the next one's norms; set model.{model.family}_layers to 2 or more"
        )

    def __init__(self, config: KeelConfig, place: BlockPlace):
        super().__init__(place)
        self.alpha = constant(1.0 if place.index == 0 else 2.0 * place.depth)

    def build_part(self, part: str, place: BlockPlace, eps_factor: float) -> nn.Module:
        first = part == "out_norm" and place.index == 0
        return nn.Identity() if first else place.build_norm(eps_factor)

    def sublayer(self, x: Tensor, norm: nn.Module, branch: Branch, out_norm: nn.Module) -> Tensor:
        return out_norm(x * self.alpha + branch(norm(x)))
