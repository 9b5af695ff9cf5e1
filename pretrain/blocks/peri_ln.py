"""Peri-LN (Kim et al. 2025, arXiv 2502.02732): x_{l+1} = x_l + LN(G_l(LN(x_l))), and a norm after the last layer."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from pretrain.blocks.base import BlockPlace
from pretrain.blocks.registry import BLOCKS
from pretrain.blocks.sequential import Branch, SequentialBlock
from pretrain.registry import Section


class PeriLNConfig(Section):
    """Norms on both sides of each branch, and at the end; the paper has model.embedding_norm too."""

    kind: Literal["peri_ln"] = "peri_ln"


@BLOCKS.register(PeriLNConfig)
class PeriLNBlock(SequentialBlock):
    """Xavier with gain 1 everywhere. Dropout comes before the second norm."""

    final_norm = True
    parts = ("norm", "out_norm")

    def __init__(self, config: PeriLNConfig, place: BlockPlace):
        super().__init__(place)

    def sublayer(self, x: Tensor, norm: nn.Module, branch: Branch, out_norm: nn.Module) -> Tensor:
        return x + out_norm(branch(norm(x)))
