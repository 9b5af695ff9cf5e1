"""Who sees whom in attention, from one integer a position.

An attention mask is int64 [B, T]: 0 is padding, k > 0 a token of document k, and -k a token of document k's prefix,
which its whole document sees whatever the order (prefix LM). A sample of one document has ones only.
"""

from __future__ import annotations

import torch
from torch import Tensor


def padding_mask(keys: Tensor) -> Tensor:
    """Every query sees every key but padding: int [B, S] -> bool [B, 1, 1, S]."""
    return (keys != 0)[:, None, None, :]


def segment_mask(queries: Tensor, keys: Tensor, causal: bool) -> Tensor:
    """Every query sees the keys of its own document; of those behind it, where causal, only the prefix.

    Args:
        queries: int [B, T].
        keys: int [B, S].
        causal: T = S, and position i sees 0..i and its document's prefix.

    Returns:
        bool [B, 1, T, S]; a query of padding sees all keys (a row without any would be not a number).
    """
    q, k = queries[:, :, None], keys[:, None, :]
    seen = q.abs() == k.abs()
    if causal:
        seen &= (k < 0) | torch.ones(q.shape[1], k.shape[2], dtype=torch.bool, device=keys.device).tril()
    return (seen | (q == 0))[:, None]


def document_positions(mask: Tensor) -> Tensor:
    """Positions counted anew in every document: int [B, T] -> int64 [B, T]; documents lie one after the other."""
    index = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    starts = torch.ones_like(mask, dtype=torch.bool)
    starts[:, 1:] = mask.abs()[:, 1:] != mask.abs()[:, :-1]
    return index - torch.where(starts, index, 0).cummax(dim=1).values
