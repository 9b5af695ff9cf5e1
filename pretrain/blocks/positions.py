"""Positions that are computed, not learned: sinusoidal ones are added to the embedding, rotary ones turn q and k."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

BASE = 10000.0


def angles(length: int, width: int) -> Tensor:
    """position * 10000^(-2i/width) for i < width/2: fp64 [length, width / 2]."""
    rates = BASE ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.arange(length, dtype=torch.float64)[:, None] * rates[None, :]


def sinusoids(length: int, width: int) -> Tensor:
    """[sin | cos] of `angles` (Vaswani et al. 2017, in the half-and-half layout of fairseq): fp32 [length, width]."""
    table = angles(length, width)
    return torch.cat([table.sin(), table.cos()], dim=-1).float()


@functools.lru_cache(maxsize=8)
def rotary_table(length: int, head_size: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of `angles`, each pair twice: two tensors [length, head_size]. All layers share one table."""
    table = torch.cat([angles(length, head_size)] * 2, dim=-1).to(device)
    return table.cos().to(dtype), table.sin().to(dtype)


def rotate(x: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864, eq. 34, in the half-and-half layout).

    Scores of two rotated vectors depend on the distance of their positions alone, so documents packed into one
    sample need no positions of their own.

    Args:
        x: [..., T, d_h], d_h even; position t is turned by t.
    """
    cos, sin = rotary_table(x.shape[-2], x.shape[-1], x.device, x.dtype)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
