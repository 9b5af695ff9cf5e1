"""Multi-head attention over SDPA."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.blocks.init import Initialiser, xavier_normal
from pretrain.blocks.linear import Linear


class AttentionCore(nn.Module):
    """softmax(q k^T / sqrt(d_h) + mask) v. A module of its own so that a hook on it sees q, k and the mask."""

    def __init__(self, causal: bool):
        super().__init__()
        self.causal = causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """q [B, H, T, d_h], k and v [B, H, S, d_h], mask bool broadcastable to [B, H, T, S] (True: visible)."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal)


class Attention(nn.Module):
    """Attention(x, memory) = out_proj(concat_h softmax(q_h k_h^T / sqrt(d_h)) v_h) (Vaswani et al. 2017).

    Args:
        hidden_size: d, width of x and memory.
        num_heads: H; d_h = d / H.
        causal: position i sees keys 0..i only.
        value_init, out_init: initialisers of v_proj and out_proj (DeepNorm scales these); q_proj and k_proj are
            Xavier with gain 1. The three projections are separate matrices, so each has its own fan (a fused
            (3d, d) Xavier would shrink them by 1/sqrt(2)).
        bias: biases on all four projections.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        causal: bool,
        value_init: Initialiser,
        out_init: Initialiser,
        bias: bool = True,
    ):
        super().__init__()
        self.head_size = hidden_size // num_heads
        self.q_proj = Linear(hidden_size, hidden_size, xavier_normal(), bias)
        self.k_proj = Linear(hidden_size, hidden_size, xavier_normal(), bias)
        self.v_proj = Linear(hidden_size, hidden_size, value_init, bias)
        self.out_proj = Linear(hidden_size, hidden_size, out_init, bias)
        self.core = AttentionCore(causal)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """x [B, T, d], memory [B, S, d] (x itself for self-attention), mask as in AttentionCore -> [B, T, d]."""
        q, k, v = self._heads(self.q_proj(x)), self._heads(self.k_proj(memory)), self._heads(self.v_proj(memory))
        return self.out_proj(self.core(q, k, v, mask).transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_size)).transpose(1, 2)
