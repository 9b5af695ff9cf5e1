"""Multi-head attention with projections of its own."""

from __future__ import annotations

from torch import Tensor, nn

from pretrain.blocks.heads import AttentionHeads, AttentionOptions
from pretrain.blocks.init import Initialiser, xavier_normal
from pretrain.blocks.linear import Linear


class Attention(AttentionHeads):
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
        options: AttentionOptions = AttentionOptions(),  # noqa: B008 (frozen)
        key_init: Initialiser | None = None,
    ):
        super().__init__(hidden_size, num_heads, causal, options)
        d, bias = hidden_size, options.bias
        self.q_proj = Linear(d, d, key_init or xavier_normal(), bias)
        self.k_proj = Linear(d, d, key_init or xavier_normal(), bias)
        self.v_proj = Linear(d, d, value_init, bias)
        self.out_proj = Linear(d, d, out_init, bias)
        self.out_norm: nn.Module = nn.Identity()  # a norm over d where the design has one before out_proj

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """x [B, T, d], memory [B, S, d] (x itself for self-attention), mask as in AttentionCore -> [B, T, d]."""
        attended = self.attend(self.q_proj(x), self.k_proj(memory), self.v_proj(memory), mask)
        return self.out_proj(self.out_norm(attended))
