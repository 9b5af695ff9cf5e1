"""Multi-head attention over SDPA."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.blocks.init import Initialiser, xavier_normal
from pretrain.blocks.linear import Linear
from pretrain.blocks.norms import NORMS
from pretrain.blocks.positions import rotate


class AttentionCore(nn.Module):
    """softmax(q k^T / sqrt(d_h) + mask) v. A module of its own so that a hook on it sees q, k and the mask."""

    def __init__(self, causal: bool):
        super().__init__()
        self.causal = causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """q [B, H, T, d_h], k and v [B, H, S, d_h] -> [B, H, T, d_h].

        mask: bool broadcastable to [B, H, T, S] (True: visible), complete, also where causal; None: all, or causal.
        """
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal and mask is None)


@dataclass(frozen=True)
class AttentionOptions:
    """What every attention of a model has in common.

    Args:
        bias: biases on all four projections.
        qk_norm: None, or the kind of norm over d_h, one gain for all heads, on q and k before their product
            (ViT-22B, arXiv 2302.05442, eq. 3).
        eps: of that norm.
        rotary: rotary positions on q and k (after their norm); self-attention only.
    """

    bias: bool = True
    qk_norm: str | None = None
    eps: float = 1e-5
    rotary: bool = False


class Attention(nn.Module):
    """Attention(x, memory) = out_proj(concat_h softmax(q_h k_h^T / sqrt(d_h)) v_h) (Vaswani et al. 2017).

    Args:
        hidden_size: d, width of x and memory.
        num_heads: H; d_h = d / H.
        causal: position i sees keys 0..i only.
        value_init, out_init: initialisers of v_proj and out_proj (DeepNorm scales these).
        options: see AttentionOptions.
        key_init: of q_proj and k_proj. The three projections are separate matrices, so each has its own fan (a
            fused (3d, d) Xavier would shrink them by 1/sqrt(2)).
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        causal: bool,
        value_init: Initialiser,
        out_init: Initialiser,
        options: AttentionOptions = AttentionOptions(),
        key_init: Initialiser | None = None,
    ):
        super().__init__()
        d, bias = hidden_size, options.bias
        self.head_size = d // num_heads
        self.q_proj = Linear(d, d, key_init or xavier_normal(), bias)
        self.k_proj = Linear(d, d, key_init or xavier_normal(), bias)
        self.v_proj = Linear(d, d, value_init, bias)
        self.out_proj = Linear(d, d, out_init, bias)
        self.q_norm, self.k_norm = query_key_norms(self.head_size, options)
        self.out_norm: nn.Module = nn.Identity()  # a norm over d where the design has one before out_proj
        self.rotary = options.rotary
        self.core = AttentionCore(causal)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """x [B, T, d], memory [B, S, d] (x itself for self-attention), mask as in AttentionCore -> [B, T, d]."""
        q, k, v = self._heads(self.q_proj(x)), self._heads(self.k_proj(memory)), self._heads(self.v_proj(memory))
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary:
            q, k = rotate(q), rotate(k)
        return self.out_proj(self.out_norm(self.core(q, k, v, mask).transpose(1, 2).flatten(2)))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_size)).transpose(1, 2)


def query_key_norms(head_size: int, options: AttentionOptions) -> tuple[nn.Module, nn.Module]:
    """The norms of QK-norm, or two identities."""
    if options.qk_norm is None:
        return nn.Identity(), nn.Identity()
    norm = NORMS[options.qk_norm]
    return norm(head_size, options.eps), norm(head_size, options.eps)
