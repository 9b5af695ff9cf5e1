"""LayerNorm Scaling (Sun et al. 2025, arXiv 2502.05795): x_{l+1} = x_l + G_l(LN(x_l) / sqrt(l)), l counted from 1."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from pretrain.blocks.base import BlockPlace
from pretrain.blocks.constant import constant
from pretrain.blocks.registry import BLOCKS
from pretrain.blocks.sequential import Branch, SequentialBlock
from pretrain.registry import Section


class LNSConfig(Section):
    """Pre-LN whose norms' outputs shrink with the depth, against a variance that grows with it."""

    kind: Literal["lns"] = "lns"


@BLOCKS.register(LNSConfig)
class LNSBlock(SequentialBlock):
    """Xavier with gain 1 everywhere; l counts within the block's own stack, and the final norm is not scaled."""

    final_norm = True

    def __init__(self, config: LNSConfig, place: BlockPlace):
        super().__init__(place)
        self.scale = constant((place.index + 1) ** -0.5)

    def sublayer(self, x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
        return x + branch(norm(x) * self.scale)
