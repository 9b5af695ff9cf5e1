"""Figures of attention logits; in place where they are large, as fresh memory costs a CPU more than the arithmetic."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LARGE = 100.0
"""Logits above this are counted."""
HIDDEN = -1e30
"""Added to the logit of a key that is not seen; finite, so that a weight of 0 times it is 0."""
ELEMENTS = 1 << 24
"""Logits that are looked at together: 64 MiB in fp32, twice."""


def visible(queries: Tensor, keys: int, mask: Tensor | None, causal: bool) -> Tensor:
    """Which keys each query sees: bool [n, 1, T, S].

    Args:
        queries: bool [n, T], those that are no padding; the others see nothing here.
        keys: S.
        mask, causal: as in AttentionCore.
    """
    seen = queries[:, None, :, None]
    if mask is not None:
        return seen & mask
    whole = torch.ones(queries.shape[1], keys, dtype=torch.bool, device=queries.device)
    return seen & (whole.tril() if causal else whole)


class Sight(NamedTuple):
    """Who sees whom, as fp32 terms and factors: to select by a mask takes several times as long as to add."""

    hidden: Tensor
    """[n, 1, T, S]: 0 where the query sees the key, else HIDDEN."""
    weight: Tensor
    """[n, 1, T]: 1 / log(keys seen); 0 where a query sees fewer than two and does not count."""
    uncounted: Tensor
    """[n, 1, T]: infinity for those queries, else 0."""
    counts: Tensor
    """[2]: pairs of a query and a key that it sees, and queries that count."""

    @classmethod
    def of(cls, seen: Tensor) -> Sight:
        """seen: bool [n, 1, T, S]."""
        keys = seen.sum(-1)
        counted = keys > 1
        return cls(
            hidden=torch.where(seen, 0.0, HIDDEN),
            weight=torch.where(counted, 1 / keys.clamp(min=2).log(), 0.0),
            uncounted=torch.where(counted, 0.0, torch.inf),
            counts=torch.stack((keys.sum(), counted.sum())),
        )


def logit_figures(q: Tensor, k: Tensor, sight: Sight) -> tuple[Tensor, Tensor]:
    """What adds up, and what is compared, over samples; in fp32, never more than ELEMENTS logits at a time.

    Args:
        q: [layers, n, H, T, d_h].
        k: [layers, n, H, S, d_h].
        sight: of [n, 1, T, S].

    Returns:
        [layers, 2, H]: pairs with a large logit, and the sum of the queries' entropies, each divided by log(keys seen).
        [layers, 2, H]: the largest |logit|, and the smallest of those entropies, negated.
    """
    (layers, n, heads, queries, d), keys = q.shape, k.shape[-2]
    q, k = q.float() * d**-0.5, k.float().mT
    step = max(1, ELEMENTS // (layers * n * heads * keys))
    sums, maxima = [], []
    for first in range(0, queries, step):
        hidden, weight, uncounted = (x[:, :, first : first + step] for x in sight[:3])
        logits = q[..., first : first + step, :] @ k
        size = logits.abs().add_(hidden)
        biggest = size.amax((1, 3, 4))
        large = size.gt_(LARGE).sum((1, 3, 4))  # in place: 0.0 and 1.0, at a fifth of the time that bools take
        entropies = (entropy(logits.add_(hidden), size) * weight).clamp_(0.0, 1.0)  # rounding may pass the limits
        sums.append(torch.stack((large, entropies.sum((1, 3))), 1))
        maxima.append(torch.stack((biggest, -(entropies + uncounted).amin((1, 3))), 1))
    return torch.stack(sums).sum(0), torch.stack(maxima).amax(0)


def entropy(logits: Tensor, scratch: Tensor) -> Tensor:
    """-sum_j p_j log p_j over the last dimension, p = softmax(logits); `scratch`, of their shape, is overwritten."""
    log_p = torch.log_softmax(logits, -1)
    return -torch.exp(log_p, out=scratch).mul_(log_p).sum(-1)
