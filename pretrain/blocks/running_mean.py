"""The mean of a sequence up to each of its positions."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 32


class Tables(NamedTuple):
    """The running mean of T positions as products with small matrices, T = n * CHUNK."""

    within: Tensor
    """[n, CHUNK, CHUNK]: 1 / (position + 1) where the key is in the query's chunk and not behind it, else 0."""
    before: Tensor
    """[n, n]: 1 where a chunk lies before another, else 0."""
    inverse: Tensor
    """[n, CHUNK, 1]: 1 / (position + 1)."""


@functools.lru_cache(maxsize=8)
def tables(length: int, device: torch.device, dtype: torch.dtype) -> Tables:
    """All layers share them. length: a multiple of CHUNK."""
    inverse = (1.0 / torch.arange(1, length + 1, dtype=torch.float64, device=device)).view(-1, CHUNK, 1)
    within = torch.ones(CHUNK, CHUNK, dtype=torch.float64, device=device).tril() * inverse
    before = torch.ones(length // CHUNK, length // CHUNK, dtype=dtype, device=device).tril(-1)
    return Tables(within.to(dtype), before, inverse.to(dtype))


class RunningMean(torch.autograd.Function):
    """y_i = (v_1 + ... + v_i) / i over dimension 1: within chunks by one product, over chunks by their sums.

    Linear in T, and much faster than a cumulative sum over a dimension that is not the last. The products add up in
    fp32 also where v is bf16, so the error does not grow with T.
    """

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        chunks, table = in_chunks(v)
        sums = table.before @ chunks.sum(2)
        means = (table.within @ chunks).addcmul_(table.inverse, sums[:, :, None])
        return means.flatten(1, 2)[:, : v.shape[1]]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        chunks, table = in_chunks(gradient)
        sums = table.before.T @ (table.inverse.mT @ chunks)[:, :, 0]
        found = (table.within.mT @ chunks).add_(sums[:, :, None])
        return found.flatten(1, 2)[:, : gradient.shape[1]]


def in_chunks(x: Tensor) -> tuple[Tensor, Tables]:
    """[B, T, d] -> [B, n, CHUNK, d], zeros added at the end, and the tables for it."""
    missing = -x.shape[1] % CHUNK
    padded = F.pad(x, (0, 0, 0, missing)) if missing else x
    return padded.unflatten(1, (-1, CHUNK)), tables(padded.shape[1], x.device, x.dtype)


def running_mean(v: Tensor) -> Tensor:
    """The mean of v[:, : t + 1] for every t: [B, T, d] -> [B, T, d]."""
    return RunningMean.apply(v)
