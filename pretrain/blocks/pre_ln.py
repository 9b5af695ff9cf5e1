"""Pre-LN (Xiong et al. 2020, arXiv 2002.04745): x_{l+1} = x_l + G_l(LN(x_l)), and a norm after the last layer."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from pretrain.blocks.base import BlockPlace
from pretrain.blocks.registry import BLOCKS
from pretrain.blocks.sequential import Branch, SequentialBlock
from pretrain.registry import Section


class PreLNConfig(Section):
    """Pre-LN with a final norm on every stack."""

    kind: Literal["pre_ln"] = "pre_ln"


@BLOCKS.register(PreLNConfig)
class PreLNBlock(SequentialBlock):
    """Xavier with gain 1 everywhere."""

    final_norm = True

    def __init__(self, config: PreLNConfig, place: BlockPlace):
        super().__init__(place)

    def sublayer(self, x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
        return x + branch(norm(x))
