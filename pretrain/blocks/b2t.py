"""B2T connection (Takase et al. 2022, arXiv 2206.00330): Post-LN with a second way from a layer's bottom to its top."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from pretrain.blocks.base import BlockPlace, Streams
from pretrain.blocks.registry import BLOCKS
from pretrain.blocks.sequential import Branch, SequentialBlock
from pretrain.registry import Section


class B2TConfig(Section):
    """Post-LN whose layers add their input once more before their last norm."""

    kind: Literal["b2t"] = "b2t"


@BLOCKS.register(B2TConfig)
class B2TBlock(SequentialBlock):
    """Xavier with gain 1 everywhere."""

    ffn_norm: nn.Module

    def __init__(self, config: B2TConfig, place: BlockPlace):
        super().__init__(place)

    def sublayer(self, x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
        return norm(x + branch(x))

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """LN(x + y + FFN(y)), y the layer's input x after its attentions; past all norms but the last, x is kept."""
        self_attention, cross_attention, ffn = self.branches(streams)
        y = self.sublayer(x, branch=self_attention, **self.parts_of("self_attention"))
        if self.has_cross_attention:
            y = self.sublayer(y, branch=cross_attention, **self.parts_of("cross_attention"))
        return self.ffn_norm(x + y + ffn(y))
