"""What every attention does with its q, k and v: heads, norms, rotary positions, SDPA."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.blocks.norms import GAIN_NORMS
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
        dtype = q.dtype
        if dtype == torch.bfloat16 and q.device.type == "cpu":  # torch's CPU kernel is a third slower in bf16
            q, k, v = q.float(), k.float(), v.float()
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal and mask is None)
        return attended.to(dtype)


@dataclass(frozen=True)
class AttentionOptions:
    """What every attention of a model has in common.

    Args:
        bias: biases on all four projections.
        qk_norm: None, or the kind of norm over d_h, one gain for all heads, on q and k before their product
            (ViT-22B, arXiv 2302.05442, eq. 3). As the paper's it has no bias: on k softmax would not see one, and the
            bound sqrt(d_h) max|gain_q| max|gain_k| on the logits needs there to be none.
        eps: of that norm.
        rotary: rotary positions on q and k (after their norm); self-attention only.
    """

    bias: bool = True
    qk_norm: str | None = None
    eps: float = 1e-5
    rotary: bool = False


class AttentionHeads(nn.Module):
    """concat_h A_h v_h with A_h = softmax(norm(q_h) norm(k_h)^T / sqrt(d_h)), the norms and rotary positions optional.

    Args:
        hidden_size: d.
        num_heads: H; d_h = d / H.
        causal: position i sees keys 0..i only.
        options: see AttentionOptions; `bias` is the block's business.
    """

    def __init__(self, hidden_size: int, num_heads: int, causal: bool, options: AttentionOptions):
        super().__init__()
        self.num_heads, self.head_size = num_heads, hidden_size // num_heads
        self.q_norm, self.k_norm = query_key_norms(self.head_size, options)
        self.rotary = options.rotary
        self.core = AttentionCore(causal)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """q, k, v [B, T, d], mask as in AttentionCore -> [B, T, d]."""
        q, k, v = (x.unflatten(-1, (-1, self.head_size)) for x in (q, k, v))
        # The norms come before the transposition, where a position's heads still lie side by side: faster.
        q, k, v = self.q_norm(q).transpose(1, 2), self.k_norm(k).transpose(1, 2), v.transpose(1, 2)
        if self.rotary:
            q, k = rotate(q), rotate(k)
        return self.core(q, k, v, mask).transpose(1, 2).flatten(2)


def query_key_norms(head_size: int, options: AttentionOptions) -> tuple[nn.Module, nn.Module]:
    """The norms of QK-norm, or two identities."""
    if options.qk_norm is None:
        return nn.Identity(), nn.Identity()
    norm = GAIN_NORMS[options.qk_norm]
    return norm(head_size, options.eps), norm(head_size, options.eps)
