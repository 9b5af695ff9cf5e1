"""Cross-entropy as a sum, so that a global batch is normalised once by its count of targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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

    def sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum over the labels that are not -100, in nats.

        Args:
            logits: [B, T, V], any floating dtype, or [n, V] for the n labels that are not -100, row by row; the softmax
                runs in fp32 (in fp64 for fp64 logits).
            labels: [B, T], int64; -100 has no weight.

        Returns:
            fp32 scalar (fp64 for fp64 logits); 0 where no label counts.
        """
        if logits.ndim == 2:
            labels = labels[labels != IGNORE_INDEX]
        return _SummedLoss.apply(logits.flatten(0, -2), labels.flatten(), self.label_smoothing, self.z_loss)  # type: ignore[no-untyped-call]


class _SummedLoss(torch.autograd.Function):
    """One softmax serves value and gradient, which is made in its place: 8 bytes a logit instead of 12.

    With p = softmax(l), Z = log(sum exp(l)), smoothing e and z-loss c, a target y costs

        L = Z - (1 - e) l_y - e mean(l) + c Z^2,        dL/dl = (1 + 2 c Z) p - (1 - e) onehot(y) - e / V.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, smoothing: float, z_loss: float) -> Tensor:
        counts = labels != IGNORE_INDEX
        targets = labels.masked_fill(~counts, 0)[:, None]
        dtype = torch.promote_types(logits.dtype, torch.float32)
        p = torch.softmax(logits, -1, dtype=dtype)
        # Everything relative to the largest logit m, so that nothing is lost by cancellation: Z - m = -log max(p).
        largest = logits.amax(-1).to(dtype)
        above = -p.amax(-1).log()
        loss = above + (1 - smoothing) * (largest - logits.gather(-1, targets)[:, 0])
        if smoothing:
            loss = loss + smoothing * (largest - logits.mean(-1, dtype=dtype))
        factor = counts.to(dtype)
        if z_loss:
            log_partition = largest + above
            loss = loss + z_loss * log_partition.square()
            factor = factor * (1 + 2 * z_loss * log_partition)
        ctx.parts = p, targets, counts, factor, smoothing, logits.dtype
        return loss.masked_fill(~counts, 0.0).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        p, targets, counts, factor, smoothing, dtype = ctx.parts
        ctx.parts = None  # its memory becomes the gradient's
        each = (counts * upstream)[:, None].to(p.dtype)
        gradient = p.mul_((factor * upstream)[:, None])
        if smoothing:
            gradient.sub_(each * (smoothing / p.shape[-1]))
        gradient.scatter_add_(-1, targets, each * (smoothing - 1))
        return gradient.to(dtype), None, None, None


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Plain cross-entropy: `TokenLoss().sum`."""
    return TokenLoss().sum(logits, labels)


def count_targets(labels: Tensor) -> Tensor:
    """Number of labels that are not -100, as an int64 scalar on the labels' device."""
    return (labels != IGNORE_INDEX).sum()
