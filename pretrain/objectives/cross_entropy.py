"""Cross-entropy as a sum, so that a global batch is normalised once by its count of targets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

IGNORE_INDEX = -100


@dataclass(frozen=True)
class TokenLoss:
    """What training minimises; both factors 0: plain cross-entropy.

    Args:
        label_smoothing: e in (1 - e) * -log p(label) + e * mean over the vocabulary of -log p.
        z_loss: c in c * log(sum exp(logits))^2, added to every target (PaLM, arXiv 2204.02311, section 5).
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def sum(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sum over the labels that are not -100, in nats.

        Args:
            logits: [B, T, V], any floating dtype; the softmax runs in fp32 (in fp64 for fp64 logits).
            labels: [B, T], int64; -100 has no weight.

        Returns:
            fp32 scalar (fp64 for fp64 logits); 0 where no label counts.
        """
        dtype = torch.promote_types(logits.dtype, torch.float32)
        flat, targets = logits.to(dtype).flatten(0, 1), labels.flatten()
        loss = F.cross_entropy(
            flat, targets, ignore_index=IGNORE_INDEX, reduction="sum", label_smoothing=self.label_smoothing
        )
        if self.z_loss:
            log_partition = flat.logsumexp(-1).masked_fill(targets == IGNORE_INDEX, 0.0)
            loss = loss + self.z_loss * log_partition.square().sum()
        return loss


def cross_entropy_sum(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Plain cross-entropy: `TokenLoss().sum`."""
    return TokenLoss().sum(logits, labels)


def count_targets(labels: torch.Tensor) -> torch.Tensor:
    """Number of labels that are not -100, as an int64 scalar on the labels' device."""
    return (labels != IGNORE_INDEX).sum()
