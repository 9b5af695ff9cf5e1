"""Cross-entropy as a sum, so that a global batch is normalised once by its count of targets."""

from __future__ import annotations

import torch
import torch.nn.functional as F

IGNORE_INDEX = -100


def cross_entropy_sum(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of -log p(label) over the labels that are not -100, in nats.

    Args:
        logits: [B, T, V], any floating dtype; the softmax runs in fp32 (in fp64 for fp64 logits).
        labels: [B, T], int64; -100 has no weight.

    Returns:
        fp32 scalar (fp64 for fp64 logits); 0 where no label counts.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(dtype).flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")


def count_targets(labels: torch.Tensor) -> torch.Tensor:
    """Number of labels that are not -100, as an int64 scalar on the labels' device."""
    return (labels != IGNORE_INDEX).sum()
