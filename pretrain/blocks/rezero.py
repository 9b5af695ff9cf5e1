"""ReZero (Bachlechner et al. 2020, arXiv 2003.04887): x_{l+1} = x_l + a_l * G_l(x_l), a_l learned, 0 at first."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from pretrain.blocks.base import BlockPlace
from pretrain.blocks.gain import Gain
from pretrain.blocks.registry import BLOCKS
from pretrain.blocks.sequential import Branch, SequentialBlock
from pretrain.registry import Section


class ReZeroConfig(Section):
    """No norms; one learned number a sublayer weighs its branch, so that every layer starts as the identity."""

    kind: Literal["rezero"] = "rezero"


@BLOCKS.register(ReZeroConfig)
class ReZeroBlock(SequentialBlock):
    """Xavier with gain 1 everywhere; the branches get a gradient once their gain has left 0, after one step."""

    parts = ("gain",)

    def __init__(self, config: ReZeroConfig, place: BlockPlace):
        super().__init__(place)

    def build_part(self, part: str, place: BlockPlace, eps_factor: float) -> nn.Module:
        return Gain(0.0)

    def sublayer(self, x: Tensor, gain: Gain, branch: Branch) -> Tensor:
        return x + gain(branch(x))
