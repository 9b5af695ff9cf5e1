"""Post-LN-init (Wang et al. 2022, arXiv 2203.00555, section 3.1): Post-LN whose lower layers start smaller."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from pretrain.blocks.base import BlockPlace
from pretrain.blocks.registry import BLOCKS
from pretrain.blocks.sequential import Branch, SequentialBlock
from pretrain.registry import Section


class PostLNInitConfig(Section):
    """Post-LN with the weights of layer l divided by N - l + 1 at the start: DeepNet's baseline."""

    kind: Literal["post_ln_init"] = "post_ln_init"


@BLOCKS.register(PostLNInitConfig)
class PostLNInitBlock(SequentialBlock):
    """x_{l+1} = LN(x_l + G_l(x_l)); all matrices of layer l, counted from 1 in its stack: Xavier / (N - l + 1)."""

    post_norm = True
    alpha = 1.0

    def __init__(self, config: PostLNInitConfig, place: BlockPlace):
        k = place.depth - place.index
        super().__init__(place, branch_init=place.init(gain=1 / k), key_init=place.init(gain=1 / k))

    def sublayer(self, x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
        return norm(x + branch(x))
