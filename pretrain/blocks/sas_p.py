"""SAS-P, the parallel simplified block of He & Hofmann (2023, arXiv 2311.01906, figure 10): no skip at all."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from pretrain.blocks.base import BlockPlace, Streams
from pretrain.blocks.registry import BLOCKS
from pretrain.blocks.sas import SimplifiedBlock, SimplifiedConfig, refuse_qk_norm
from pretrain.blocks.shaped_attention import ShapedAttention


class SASPConfig(SimplifiedConfig):
    """SAS-P: shaped attention and MLP side by side behind one norm, no skip at all; otherwise as sas."""

    kind: Literal["sas_p"] = "sas_p"


@BLOCKS.register(SASPConfig)
class SASPBlock(SimplifiedBlock):
    """b_SA SAS(N(X)) + b_FF MLP(N(X))."""

    attention_matrices = 2  # q and k

    @classmethod
    def objection(cls, config: Any, model: Any) -> str | None:
        return refuse_qk_norm(config, model)

    def __init__(self, config: SASPConfig, place: BlockPlace):
        super().__init__(config, place, ShapedAttention(place))
        self.input_norm = place.build_norm() if config.norm or place.index == 0 else nn.Identity()

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """x [B, T, d] -> [B, T, d]."""
        y = self.input_norm(x)
        attended = self.self_attention(y, streams.mask, self.self_attention_gain.weight)
        branch = self.ffn_dropout(self.ffn(y), streams.sample_key)
        return torch.addcmul(attended, self.ffn_gain.weight, branch)
