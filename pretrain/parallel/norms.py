"""L2 norms of many tensors at once, and what a gradient is divided by when it is clipped."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

import torch
from torch import Tensor

LONG = 2**12
"""Elements above which a CPU needs fp64. It adds up one after the other: of equal elements fp32 loses up to 3e-6 of the
norm here, 5e-5 at 2^16; of normal ones 6e-4 at 2^24."""


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """The L2 norm of each, fp64 [len(tensors)], on their device; there must be one."""
    exact = [tensor.numel() > LONG and tensor.device.type == "cpu" for tensor in tensors]
    if not any(exact):
        return torch.stack(torch._foreach_norm(list(tensors))).double()
    of_long = iter(torch._foreach_norm(list(compress(tensors, exact)), dtype=torch.float64))
    short = list(compress(tensors, [not needed for needed in exact]))
    of_short = iter(torch._foreach_norm(short) if short else ())
    return torch.stack([next(of_long) if needed else next(of_short).double() for needed in exact])


def lengths(x: Tensor) -> Tensor:
    """The L2 norm over the last dimension, fp64, for lengths of up to some thousands.

    CPUs take several times as long for fp64, and so short a sum of squares loses no more than 3e-7 in fp32, unless the
    squares leave its range: a gradient that vanishes in a deep Post-LN does.
    """
    if x.device.type != "cpu":
        return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64)
    found = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32).double()
    low, high = found.aminmax()
    if not (low > 1e-15 and high < 1e18):
        outside = ~((found > 1e-15) & (found < 1e18))
        found[outside] = torch.linalg.vector_norm(x[outside], dim=-1, dtype=torch.float64)
    return found


def clip_divisor(norm: float, clip: float) -> float:
    """What DeepSpeed divides a gradient of this L2 norm by; `clip` 0 leaves it as it is."""
    return max(1.0, (norm + 1e-6) / clip) if clip else 1.0
