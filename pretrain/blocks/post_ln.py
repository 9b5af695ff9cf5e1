"""Post-LN (Vaswani et al. 2017): x_{l+1} = LN(x_l + G_l(x_l))."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from pretrain.blocks.base import BlockPlace
from pretrain.blocks.registry import BLOCKS
from pretrain.blocks.sequential import Branch, SequentialBlock
from pretrain.registry import Section


class PostLNConfig(Section):
    """Post-LN, the original transformer."""

    kind: Literal["post_ln"] = "post_ln"


@BLOCKS.register(PostLNConfig)
class PostLNBlock(SequentialBlock):
    """Xavier with gain 1 everywhere."""

    post_norm = True
    alpha = 1.0

    def __init__(self, config: PostLNConfig, place: BlockPlace):
        super().__init__(place)

    def sublayer(self, x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
        return norm(x + branch(x))
