"""How tensors of ours become one of a host's, and back. Arithmetic is fp64; the caller casts last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from pretrain.blocks.positions import sinusoids

Shape = tuple[int, ...]
Constant = Callable[[Shape], Tensor]
"""What a tensor of a host holds that is none of our parameters, by its shape."""


class Transform(Protocol):
    """A reversible step on one tensor."""

    def apply(self, source: Tensor, shape: Shape) -> Tensor:
        """Ours -> the host's, which has `shape`."""

    def undo(self, target: Tensor, shape: Shape) -> Tensor:
        """The host's -> ours, which has `shape`."""


@dataclass(frozen=True)
class Copy:
    """The tensor as it is."""

    def apply(self, source: Tensor, shape: Shape) -> Tensor:
        return source

    def undo(self, target: Tensor, shape: Shape) -> Tensor:
        return target


@dataclass(frozen=True)
class Transpose:
    """A matrix [out, in] stored as [in, out]."""

    def apply(self, source: Tensor, shape: Shape) -> Tensor:
        return source.T

    def undo(self, target: Tensor, shape: Shape) -> Tensor:
        return target.T


@dataclass(frozen=True)
class Fold:
    """An output projection divided by its residual's factor: LN(a x + W y, a^2 eps) = LN(x + (W/a) y, eps)."""

    alpha: float

    def apply(self, source: Tensor, shape: Shape) -> Tensor:
        return source.double() / self.alpha

    def undo(self, target: Tensor, shape: Shape) -> Tensor:
        return target.double() * self.alpha


@dataclass(frozen=True)
class Rows:
    """A table placed from row `offset` on; the host's other rows are zero, and nobody reads them."""

    offset: int

    def apply(self, source: Tensor, shape: Shape) -> Tensor:
        table = torch.zeros(shape, dtype=source.dtype)
        table[self.offset : self.offset + source.shape[0]] = source
        return table

    def undo(self, target: Tensor, shape: Shape) -> Tensor:
        return target[self.offset : self.offset + shape[0]]

    def rest(self, target: Tensor, shape: Shape) -> Tensor:
        """The host's rows behind ours."""
        return target[self.offset + shape[0] :]


@dataclass(frozen=True)
class SinusoidRows:
    """The constant of a learned table that holds our sinusoidal positions from row `offset` on."""

    offset: int

    def __call__(self, shape: Shape) -> Tensor:
        return Rows(self.offset).apply(sinusoids(shape[0] - self.offset, shape[1]), shape)


def counting(shape: Shape) -> Tensor:
    """0, 1, 2, ... along the last dimension: the constant of buffers with position ids."""
    return torch.arange(shape[-1]).expand(shape)


@dataclass(frozen=True)
class Entry:
    """One line of a name map.

    Args:
        target: name of the host's parameter or buffer.
        source: our canonical name, or the names of several that are put on top of each other (a fused projection);
            None: the host's tensor holds `constant` (a bias that our model does not have).
        transform: from ours to the host's.
        duplicate: the host keeps another copy of a source that has its own line (an untied host's three
            embedding tables).
        constant: without a source, what the host's tensor holds; zeros by default.
    """

    target: str
    source: str | tuple[str, ...] | None
    transform: Transform = field(default_factory=Copy)
    duplicate: bool = False
    constant: Constant = torch.zeros

    @property
    def sources(self) -> tuple[str, ...]:
        if self.source is None:
            return ()
        return (self.source,) if isinstance(self.source, str) else self.source

    def apply(self, read: Callable[[str], Tensor], shape: Shape) -> Tensor:
        """What the host's tensor of `shape` holds; `read` gives ours by name."""
        if not self.sources:
            return self.constant(shape)
        parts = [read(name) for name in self.sources]
        return self.transform.apply(parts[0] if len(parts) == 1 else torch.cat(parts), shape)

    def undo(self, target: Tensor, shapes: Sequence[Shape]) -> dict[str, Tensor]:
        """Ours by name, from the host's tensor; `shapes` are ours, in the order of `sources`."""
        rows = [shape[0] for shape in shapes]
        stacked = self.transform.undo(target, (sum(rows), *shapes[0][1:]))
        if len(rows) == 1:
            return {self.sources[0]: stacked}
        return dict(zip(self.sources, stacked.split(rows), strict=True))
