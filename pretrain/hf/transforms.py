"""How one tensor of ours becomes one of a host's, and back. Arithmetic is fp64; the caller casts last."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class Transform(Protocol):
    """A reversible step on one tensor."""

    def apply(self, source: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Ours -> the host's, which has `shape`."""

    def undo(self, target: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The host's -> ours, which has `shape`."""


@dataclass(frozen=True)
class Copy:
    """The tensor as it is."""

    def apply(self, source: Tensor, shape: tuple[int, ...]) -> Tensor:
        return source

    def undo(self, target: Tensor, shape: tuple[int, ...]) -> Tensor:
        return target


@dataclass(frozen=True)
class Fold:
    """An output projection divided by its residual's factor: LN(a x + W y, a^2 eps) = LN(x + (W/a) y, eps)."""

    alpha: float

    def apply(self, source: Tensor, shape: tuple[int, ...]) -> Tensor:
        return source.double() / self.alpha

    def undo(self, target: Tensor, shape: tuple[int, ...]) -> Tensor:
        return target.double() * self.alpha


@dataclass(frozen=True)
class Rows:
    """A table placed from row `offset` on; the host's other rows are zero, and nobody reads them."""

    offset: int

    def apply(self, source: Tensor, shape: tuple[int, ...]) -> Tensor:
        table = torch.zeros(shape, dtype=source.dtype)
        table[self.offset : self.offset + source.shape[0]] = source
        return table

    def undo(self, target: Tensor, shape: tuple[int, ...]) -> Tensor:
        return target[self.offset : self.offset + shape[0]]

    def rest(self, target: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The host's rows behind ours."""
        return target[self.offset + shape[0] :]


@dataclass(frozen=True)
class Entry:
    """One line of a name map.

    Args:
        target: name of the host's parameter or buffer.
        source: our canonical name; None: the host's tensor is zero (a bias that our model does not have).
        transform: from ours to the host's.
        duplicate: the host keeps another copy of a source that has its own line (an untied host's three
            embedding tables).
    """

    target: str
    source: str | None
    transform: Transform = field(default_factory=Copy)
    duplicate: bool = False
