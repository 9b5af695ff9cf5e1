"""Shaped attention (Noci et al. 2023, arXiv 2306.17759; He & Hofmann 2023, arXiv 2311.01906, section 4).

The attention matrix is alpha I + beta A - gamma C, C being A at zero logits. No such matrix is built: A v comes from
the fused attention, C v is the mean of the values that a query sees.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.blocks.base import BlockPlace
from pretrain.blocks.heads import AttentionHeads
from pretrain.blocks.init import GeneratorFor, Initialiser, normal
from pretrain.blocks.linear import Linear
from pretrain.blocks.running_mean import running_mean
from pretrain.blocks.weighted_sum import weighted_sum

STD = 0.02
"""Of all weights but W_Q where model.init_std is not stated: the paper's."""


def weight_init(place: BlockPlace) -> Initialiser:
    """N(0, model.init_std^2), by default the paper's."""
    return normal(STD if place.init_std is None else place.init_std)


def visible_mean(v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """C v: the mean of the values that each query sees; work in T x S only where a mask has that size.

    Args:
        v: [B, S, d].
        mask, causal: as in AttentionCore.

    Returns:
        [B, T, d], or [B, 1, d] where all queries see the same.
    """
    if mask is None:
        return running_mean(v) if causal else v.mean(dim=1, keepdim=True)
    seen = mask[:, 0]
    count = seen.sum(-1, keepdim=True).clamp(min=1).to(torch.promote_types(v.dtype, torch.float32))  # too long for bf16
    return (seen.to(v.dtype) @ v / count).to(v.dtype)


class FirstValue(nn.Module):
    """W_V = a_V I + b_V dW with dW = 0 and a_V = b_V = 1 at the start: the first layer's values (2311.01906, 4.2).

    `weight` is dW, `identity` a_V and `gain` b_V, [1] each: the identity is no tensor that a checkpoint could lose.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.identity = nn.Parameter(torch.empty(1))
        self.gain = nn.Parameter(torch.empty(1))

    @torch.no_grad()
    def initialise(self, generator: GeneratorFor) -> None:
        self.weight.zero_()
        self.identity.fill_(1.0)
        self.gain.fill_(1.0)

    def forward(self, y: Tensor) -> Tensor:
        """y [B, T, d] -> [B, T, d]."""
        return weighted_sum((self.identity, y), (self.gain, F.linear(y, self.weight)))


class ShapedAttention(AttentionHeads):
    """Attn_h = (alpha_h I + beta_h A_h - gamma_h C) X_h, heads concatenated: no W_P, and W_V in the first layer only.

    W_Q = 0: then A = C, and the output is the input. alpha, beta and gamma [H] start at 1.

    Args:
        place: where the block stands; biases on q and k alone.
    """

    def __init__(self, place: BlockPlace):
        super().__init__(place.hidden_size, place.num_heads, place.causal, place.attention_options())
        d = place.hidden_size
        self.q_proj = Linear(d, d, normal(0.0), place.bias)
        self.k_proj = Linear(d, d, weight_init(place), place.bias)
        self.v_proj = FirstValue(d) if place.index == 0 else nn.Identity()
        self.alpha, self.beta, self.gamma = (nn.Parameter(torch.empty(place.num_heads)) for _ in range(3))

    @torch.no_grad()
    def initialise(self, generator: GeneratorFor) -> None:
        for gain in (self.alpha, self.beta, self.gamma):
            gain.fill_(1.0)

    def forward(self, y: Tensor, mask: Tensor | None, gain: Tensor) -> Tensor:
        """y [B, T, d], mask as in AttentionCore, gain [1], times which the output is -> [B, T, d]."""
        v = self.v_proj(y)
        attended = self.attend(self.q_proj(y), self.k_proj(y), v, mask)
        mean = visible_mean(v, mask, self.core.causal)
        # One factor on three small gains costs nothing; on the output it would be a pass over it.
        alpha, beta, gamma = (
            (gain * own).repeat_interleave(self.head_size) for own in (self.alpha, self.beta, self.gamma)
        )
        return weighted_sum((alpha, v), (beta, attended), (-gamma, mean))
