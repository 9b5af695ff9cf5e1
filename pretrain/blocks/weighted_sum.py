"""w_1 x_1 + w_2 x_2 + ... with learned weights, in as few passes over memory as there are terms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class WeightedSum(torch.autograd.Function):
    """Written out because autograd would keep a product a term and sum each again."""

    @staticmethod
    def forward(ctx: Any, *weights_and_terms: Tensor) -> Tensor:
        ctx.save_for_backward(*weights_and_terms)
        weights, terms = weights_and_terms[::2], weights_and_terms[1::2]
        total = weights[0] * terms[0]
        for weight, term in zip(weights[1:], terms[1:], strict=True):
            total.addcmul_(weight, term)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        saved = ctx.saved_tensors  # once: a recomputed tensor is handed out at the first call alone
        found: list[Tensor] = []
        for weight, term in zip(saved[::2], saved[1::2], strict=True):
            own = gradient.sum_to_size(term.shape)
            found += [(own * term).sum_to_size(weight.shape), weight * own]
        return tuple(found)


def weighted_sum(*pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Sum of weight * term over (weight, term) pairs.

    Args:
        pairs: weights [d] or [1]; the first term [B, T, d], the others that or [B, 1, d].
    """
    return WeightedSum.apply(*(tensor for pair in pairs for tensor in pair))
