"""The heads of an attention whose block makes q, k and v its own way."""

from __future__ import annotations

from torch import Tensor, nn

from pretrain.blocks.attention import AttentionCore, AttentionOptions, query_key_norms
from pretrain.blocks.positions import rotate


class AttentionHeads(nn.Module):
    """concat_h A_h v_h with A_h = softmax(norm(q_h) norm(k_h)^T / sqrt(d_h)), the norms and rotary positions optional.

    Args:
        head_size: d_h.
        causal: position i sees keys 0..i only.
        options: see AttentionOptions; `bias` is the block's business.
    """

    def __init__(self, head_size: int, causal: bool, options: AttentionOptions):
        super().__init__()
        self.head_size = head_size
        self.q_norm, self.k_norm = query_key_norms(head_size, options)
        self.rotary = options.rotary
        self.core = AttentionCore(causal)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """q, k, v [B, T, d], mask as in AttentionCore -> [B, T, d]."""
        q, k, v = (x.unflatten(-1, (-1, self.head_size)).transpose(1, 2) for x in (q, k, v))
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary:
            q, k = rotate(q), rotate(k)
        return self.core(q, k, v, mask).transpose(1, 2).flatten(2)
