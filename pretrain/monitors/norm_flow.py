"""What passes the inputs of the blocks' norms in a training step, forwards or backwards, as a mean square."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pretrain.models.layers import ModelSpec
from pretrain.monitors.blocks import built_parts, norms_of, part_rows
from pretrain.monitors.listening import Found, Hooks, Pile, add_up
from pretrain.monitors.model_update import width
from pretrain.monitors.signals import NOTHING, Part, Signal
from pretrain.parallel.engine import Engine
from pretrain.parallel.norms import lengths


class NormFlow(Signal):
    """Root mean square over samples, positions and width, a row a layer and norm; padding included.

    Where a design leaves out the norm of a layer, the row shows what would have gone through it.
    """

    def __init__(self, spec: ModelSpec):
        self.rows = part_rows(spec, norms_of)
        self.width = width(spec)
        self.hooks = Hooks()
        self._forget()

    def _forget(self) -> None:
        self.piles: dict[torch.Size, Pile] = {}
        self.squares: Found = []
        self.elements: Counter[int] = Counter()

    @abstractmethod
    def listener(self, row: int) -> Any:
        """A forward pre-hook for the norm of this row, which calls `note` with what passes."""

    def note(self, row: int, x: Tensor) -> None:
        """x [..., d]"""
        each = lengths(x)
        shape = each.shape
        if shape not in self.piles:
            self.piles[shape] = Pile(self._add_up)
        self.piles[shape].add(row, shape.numel(), each)

    def _add_up(self, rows: Sequence[int], each: Tensor) -> None:
        # In place: a pile's own copy of them.
        self.squares.append((rows, each.square_().flatten(1).sum(1)))
        for row in rows:
            self.elements[row] += each[0].numel() * self.width

    def before_step(self, engine: Engine) -> None:
        self._forget()
        self.hooks.remove()  # left by a try of this step that was thrown away
        for row, _, norm in built_parts(engine.layers, self.rows, norms_of):
            self.hooks.add(norm.register_forward_pre_hook(self.listener(row)))

    def collect(self, engine: Engine) -> Part:
        self.hooks.remove()
        for pile in self.piles.values():
            pile.clear()
        squares = add_up(self.squares, [self.rows.total])
        elements = torch.tensor([self.elements[row] for row in range(self.rows.total)], dtype=torch.float64)
        self._forget()
        return Part(torch.cat([squares, elements]), NOTHING)

    def rms(self, sums: Tensor) -> dict[str, list[float]]:
        squares, elements = sums.chunk(2)
        return self.rows.split((squares / elements.clamp(min=1)).sqrt())
