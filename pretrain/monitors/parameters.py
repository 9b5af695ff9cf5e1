"""Figures of the parameters by layer and part: what they measure adds up over the shards, whoever owns them.

One pass over a rank's shards serves all of them. Shards are the fp32 masters, so that the figures do not depend on the
layout; a tied or replicated parameter is owned by one rank and counts once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pretrain.models.layers import ModelSpec
from pretrain.models.parameters import parameter_roles
from pretrain.monitors.parameter_chunks import Chunk, chunks_of
from pretrain.monitors.parameter_rows import ParameterRows
from pretrain.monitors.signals import NOTHING, Part, Profiles, Signal
from pretrain.parallel.engine import Engine


@dataclass(frozen=True)
class Sums:
    """What the measures of all ranks add up to, fp64."""

    elements: Tensor
    """Parameters of each row shown."""
    rows: dict[str, Tensor]
    """By measure: its sum in each row shown."""
    model: dict[str, float]
    """By measure: its sum over all parameters."""


class Figure(ABC):
    """What is shown of each row."""

    name: ClassVar[str]

    @abstractmethod
    def value(self, sums: Sums) -> Tensor:
        """The figure of each row shown."""


class Measure(Figure):
    """A figure that has a sum over elements of its own. The hooks come in the order in which they stand.

    Each is given one chunk after the other, and adds up by `chunk.squares`; what it is given, it may keep.
    """

    def __init__(self) -> None:
        self.kept: dict[int, Tensor] = {}
        """By a chunk's first row, from one hook to a later one; a further try of the step overwrites it."""

    def before_step(self, chunk: Chunk, weights: Tensor) -> None:
        """A copy of the weights with which the step begins."""

    def before_update(self, chunk: Chunk, gradients: Tensor) -> None:
        """A copy of the reduced gradients, not clipped, without loss scale."""

    @abstractmethod
    def after_step(self, chunk: Chunk, updates: int) -> Tensor:
        """The sum in each of the chunk's rows, fp64; what was kept is let go. `updates`: steps that Adam has made."""


class Norm(Measure):
    """An L2 norm, whose sum is that of the squares."""

    def value(self, sums: Sums) -> Tensor:
        return sums.rows[self.name].sqrt()


class ParameterSignals(Signal):
    """All figures in one pass. A row without parameters is NaN.

    Args:
        spec: the model.
        figures: in the order in which they are shown; those that need the sums of others come with them.
    """

    def __init__(self, spec: ModelSpec, figures: Sequence[Figure]):
        self.rows = ParameterRows(spec)
        self.figures = list(figures)
        self.measures = [figure for figure in figures if isinstance(figure, Measure)]
        self.chunks: list[Chunk] | None = None
        """Of this rank; its shards are views that hold for as long as the engine does."""
        self.listening: Engine | None = None

    def before_step(self, engine: Engine) -> None:
        if self.chunks is None:
            roles = parameter_roles(engine.layers)
            self.chunks = chunks_of(list(engine.owned_shards()), lambda name: self.rows.index(name, roles[name]))
        for chunk in self.chunks:
            weights = chunk.weights()
            for measure in self.measures:
                measure.before_step(chunk, weights)
        if self.listening is None:
            self.listening = engine
            engine.before_update.append(self._before_update)

    def _before_update(self) -> None:
        assert self.listening is not None
        loss_scale = self.listening.backward_scale / self.listening.data_parallel_size
        for chunk in self.chunks or ():
            gradients = chunk.gradients()
            if loss_scale != 1.0:
                gradients /= loss_scale
            for measure in self.measures:
                measure.before_update(chunk, gradients)

    def collect(self, engine: Engine) -> Part:
        if self.listening is not None:
            engine.before_update.remove(self._before_update)
            self.listening = None
        sums = torch.zeros(len(self.measures) + 1, self.rows.rows.total, dtype=torch.float64)
        if self.chunks:
            updates = engine.optimizer_step_count()
            measured = [
                torch.stack([measure.after_step(chunk, updates) for measure in self.measures]) for chunk in self.chunks
            ]
            rows = [row for chunk in self.chunks for row in chunk.rows]
            sums[0, rows] = torch.tensor([size for chunk in self.chunks for size in chunk.sizes], dtype=torch.float64)
            sums[1:, rows] = torch.cat(measured, 1).cpu()
        return Part(sums.flatten(), NOTHING)

    def profiles(self, sums: Tensor, maxima: Tensor) -> Profiles:
        elements, *measured = sums.view(len(self.measures) + 1, -1)
        own = {measure.name: part for measure, part in zip(self.measures, measured, strict=True)}
        shown = Sums(
            self.rows.with_wholes(elements),
            {name: self.rows.with_wholes(part) for name, part in own.items()},
            {name: float(part.sum()) for name, part in own.items()},
        )
        found: Profiles = {}
        for figure in self.figures:
            values = figure.value(shown).masked_fill(shown.elements == 0, torch.nan)
            found[figure.name] = self.rows.shown.split(values)
        return found
