"""Sub-LN (Magneto; Wang et al. 2022, arXiv 2210.06423): Pre-LN with a second norm inside each branch."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor, nn

from pretrain.blocks.base import BlockPlace
from pretrain.blocks.norms import NORMS
from pretrain.blocks.registry import BLOCKS
from pretrain.blocks.sequential import Branch, SequentialBlock
from pretrain.registry import Section


class SubLNConfig(Section):
    """Magneto: Pre-LN with norms before out_proj and fc2 too; the gain of the weights grows with the depth."""

    kind: Literal["sub_ln"] = "sub_ln"


def sub_ln_gain(stack: str, encoder_layers: int, decoder_layers: int) -> float:
    """Gain of v_proj, out_proj and the FFN, by the depths N and M (0: no such stack)."""
    N, M = encoder_layers, decoder_layers
    if stack == "encoder" and M > 0:
        return math.sqrt(math.log(3 * M) * math.log(2 * N) / 3)
    if stack == "decoder" and N > 0:
        return math.sqrt(math.log(3 * M))
    return math.sqrt(math.log(2 * (N if stack == "encoder" else M)))


@BLOCKS.register(SubLNConfig)
class SubLNBlock(SequentialBlock):
    """x + W_out LN(heads(LN x)) and x + W_2 LN(act(W_1 LN x)).

    Cross-attention is as self-attention, by the paper; the authors' code leaves it Pre-LN with gain 1.
    """

    final_norm = True

    @classmethod
    def objection(cls, config: Any, model: Any) -> str | None:
        if model.init_std is None:
            return None
        return (
            f"model.init_std = {model.init_std} does not go with model.block.kind = {config.kind}, whose gains are "
            "Xavier's, grown with depth; set model.init_std=null"
        )

    def __init__(self, config: SubLNConfig, place: BlockPlace):
        gain = sub_ln_gain(place.stack, place.encoder_layers, place.decoder_layers)
        super().__init__(place, branch_init=place.init(gain=gain))
        self.self_attention.out_norm = place.build_norm()
        if place.cross_attention:
            self.cross_attention.out_norm = place.build_norm()
        self.ffn.inner_norm = NORMS[place.norm](place.ffn_size, place.norm_eps)

    def sublayer(self, x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
        return x + branch(norm(x))
