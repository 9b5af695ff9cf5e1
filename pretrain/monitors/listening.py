"""What the signals that listen to modules have in common: hooks that leave no trace, findings that become rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

TOGETHER = 1 << 18
"""Elements from which on work is worth its start; 1 MiB in fp32, which stays in a core's cache."""

Found = list[tuple[Sequence[int], Tensor]]
"""(rows, a value of each) of some calls of hooks; no device is waited for before the end of a sample."""


class Hooks:
    """The hooks of one sample."""

    def __init__(self) -> None:
        self.handles: list[Any] = []

    def add(self, handle: Any) -> None:
        self.handles.append(handle)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []


class Pile:
    """Tensors of several layers that are worked on as one: on few tokens an operation starts longer than it runs.

    Args:
        work: `work(rows, *tensors)`, each tensor stacked over the layers.
    """

    def __init__(self, work: Callable[..., None]):
        self.work = work
        self.entries: list[tuple[int, tuple[Tensor, ...]]] = []
        self.size = 0

    def add(self, row: int, size: int, *tensors: Tensor) -> None:
        """size: elements that the work on them makes."""
        self.entries.append((row, tensors))
        self.size += size
        if self.size >= TOGETHER:
            self.clear()

    def clear(self) -> None:
        """Work on what is left."""
        if self.entries:
            rows, tensors = zip(*self.entries, strict=True)
            self.entries, self.size = [], 0
            self.work(rows, *(torch.stack(each) for each in zip(*tensors, strict=True)))


def recomputing() -> bool:
    """Whether this forward pass happens inside a backward pass: an activation is being recomputed."""
    return torch._C._current_graph_task_id() != -1


def add_up(found: Found, shape: Sequence[int]) -> Tensor:
    """The sum of each row's values, in fp64 on the CPU: [rows, ...] of `shape`; 0 where nothing was found."""
    return _reduced(found, torch.zeros(*shape, dtype=torch.float64), "sum")


def largest(found: Found, shape: Sequence[int]) -> Tensor:
    """The largest of each row's values; -inf where nothing was found. See `add_up`."""
    return _reduced(found, torch.full(tuple(shape), -torch.inf, dtype=torch.float64), "amax")


def _reduced(found: Found, into: Tensor, how: str) -> Tensor:
    if not found:
        return into
    values = torch.cat([part for _, part in found]).double().cpu()
    rows = torch.tensor([row for part, _ in found for row in part])
    index = rows.view(-1, *[1] * (values.ndim - 1)).expand_as(values)
    return into.scatter_reduce_(0, index, values, reduce=how)
