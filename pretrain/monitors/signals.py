"""The contract of a depth signal: one figure a layer, gathered over all ranks with one sum.

A signal adds its local part of two vectors over all rows of the whole model: `sums` and `counts`. After the
reduction its value is `value(sums, counts)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pretrain.models.layers import ModelSpec
from pretrain.models.parameters import row_group
from pretrain.parallel.engine import Engine


@dataclass(frozen=True)
class Rows:
    """Names of a signal's rows, the same on every rank: group -> (first row, number of rows)."""

    groups: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, sizes: dict[str, int]) -> Rows:
        first, groups = 0, {}
        for group, size in sizes.items():
            groups[group] = (first, size)
            first += size
        return cls(groups)

    @property
    def total(self) -> int:
        return sum(size for _, size in self.groups.values())

    def index(self, group: str, row: int) -> int:
        first, _ = self.groups[group]
        return first + row

    def split(self, values: Tensor) -> dict[str, list[float]]:
        return {group: values[first : first + size].tolist() for group, (first, size) in self.groups.items()}


def stack_depths(spec: ModelSpec) -> dict[str, int]:
    """Layers of each stack and one row for everything else that has parameters, in order of execution."""
    sizes: dict[str, int] = {}
    owners = [layer.name for layer in spec.layers if layer.factory is not nn.Identity]
    for name in [*spec.shared, *owners]:
        group, row = row_group(name + ".x")
        sizes[group] = max(sizes.get(group, 0), row + 1)
    return sizes


class Signal(ABC):
    """One kind of figure. `prepare` is called before a sampled step, `collect` after it."""

    name: str
    rows: Rows

    @abstractmethod
    def prepare(self, engine: Engine) -> None:
        """Start listening: hooks, copies."""

    @abstractmethod
    def collect(self, engine: Engine) -> tuple[Tensor, Tensor]:
        """Stop listening; this rank's (sums [rows], counts [rows]), fp64 on the CPU."""

    @abstractmethod
    def value(self, sums: Tensor, counts: Tensor) -> Tensor:
        """[rows] from the sums over all ranks."""

    def zeros(self) -> Tensor:
        return torch.zeros(self.rows.total, dtype=torch.float64)
