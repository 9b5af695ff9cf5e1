"""Paired times to one ratio with an interval that assumes nothing about their distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

CONFIDENCE = 0.95


@dataclass(frozen=True)
class PairedRatio:
    """Median of the ratios of pairs, with an interval for the true median."""

    median: float
    low: float
    high: float
    confidence: float
    """Probability that an interval made like this one holds the true median; below 0.95 for fewer than 6 pairs."""
    pairs: int


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> PairedRatio:
    """ours[i] / theirs[i] over pairs that were measured next to each other, so that a slow spell hits both.

    The interval lies between the k-th smallest and k-th largest ratio. The number of ratios below the true median is
    binomial(n, 1/2), whatever the distribution: k is the largest that keeps CONFIDENCE (Hollander & Wolfe, 3.6).

    Args:
        ours, theirs: seconds, equally many, at least one pair.

    Raises:
        ValueError: no pairs, or not as many on both sides.
    """
    if not ours or len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} times make no pairs")
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    k = 1
    while k < (len(ratios) + 1) // 2 and _coverage(len(ratios), k + 1) >= CONFIDENCE:
        k += 1
    return PairedRatio(median(ratios), ratios[k - 1], ratios[-k], _coverage(len(ratios), k), len(ratios))


def _coverage(n: int, k: int) -> float:
    """Probability that the median lies between the k-th smallest and k-th largest of n values."""
    return 1.0 - 2.0 * sum(math.comb(n, i) for i in range(k)) / 2.0**n
