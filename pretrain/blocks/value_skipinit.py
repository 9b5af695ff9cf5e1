"""Value-SkipInit (He et al. 2023, arXiv 2302.10322), the ablation of 2311.01906: a I + b A instead of shaping."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from pretrain.blocks.base import BlockPlace
from pretrain.blocks.heads import AttentionHeads
from pretrain.blocks.init import GeneratorFor
from pretrain.blocks.linear import Linear
from pretrain.blocks.registry import BLOCKS
from pretrain.blocks.sas import SimplifiedConfig, SkiplessBlock
from pretrain.blocks.shaped_attention import weight_init
from pretrain.blocks.weighted_sum import weighted_sum


class ValueSkipInitConfig(SimplifiedConfig):
    """Attention without skip kept alive by a I + b A with a = 1, b = 0; W_V and W_P orthogonal; otherwise as sas."""

    kind: Literal["value_skipinit"] = "value_skipinit"


def orthogonal(weight: Tensor, generator: torch.Generator) -> None:
    """A uniformly random orthogonal matrix; in fp64, so that no machine's way of factorising shows in fp32."""
    q, r = torch.linalg.qr(torch.empty(weight.shape, dtype=torch.float64).normal_(generator=generator))
    weight.copy_(q * r.diagonal().sign())


class SkipInitAttention(AttentionHeads):
    """concat_h((a_h I + b_h A_h) X W_V,h) W_P with W_V and W_P orthogonal; a = 1 and b = 0 [H] at the start.

    Args:
        place: where the block stands; biases on q and k alone.
    """

    def __init__(self, place: BlockPlace):
        super().__init__(place.hidden_size, place.num_heads, place.causal, place.attention_options())
        d = place.hidden_size
        self.q_proj = Linear(d, d, weight_init(place), place.bias)
        self.k_proj = Linear(d, d, weight_init(place), place.bias)
        self.v_proj = Linear(d, d, orthogonal, bias=False)
        self.out_proj = Linear(d, d, orthogonal, bias=False)
        self.alpha = nn.Parameter(torch.empty(place.num_heads))
        self.beta = nn.Parameter(torch.empty(place.num_heads))

    @torch.no_grad()
    def initialise(self, generator: GeneratorFor) -> None:
        self.alpha.fill_(1.0)
        self.beta.zero_()

    def forward(self, y: Tensor, mask: Tensor | None, gain: Tensor) -> Tensor:
        """As ShapedAttention."""
        v = self.v_proj(y)
        attended = self.attend(self.q_proj(y), self.k_proj(y), v, mask)
        alpha, beta = ((gain * own).repeat_interleave(self.head_size) for own in (self.alpha, self.beta))
        return self.out_proj(weighted_sum((alpha, v), (beta, attended)))


@BLOCKS.register(ValueSkipInitConfig)
class ValueSkipInitBlock(SkiplessBlock):
    """The equation of SkiplessBlock, not shaped."""

    def __init__(self, config: ValueSkipInitConfig, place: BlockPlace):
        super().__init__(config, place, SkipInitAttention(place))
