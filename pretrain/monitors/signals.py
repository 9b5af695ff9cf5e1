"""The contract of a depth signal: profiles over the layers of the whole model, gathered over all ranks.

A signal's part on each rank is two vectors of a fixed length: one adds up over ranks, of the other the largest
counts. The parts of all signals go through one SUM and one MAX reduction a sample; then every rank knows every profile.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pretrain.models.layers import ModelSpec
from pretrain.models.parameters import row_group
from pretrain.monitors.probe import Probe
from pretrain.parallel.engine import Engine

Profiles = dict[str, dict[str, list[Any]]]
"""Figure -> group -> a value a layer; where a layer has several (one a head), a list of them."""


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

    def split(self, values: Tensor) -> dict[str, list[Any]]:
        """values [rows, ...] as a list a group."""
        return {group: values[first : first + size].tolist() for group, (first, size) in self.groups.items()}


def stack_depths(spec: ModelSpec) -> dict[str, int]:
    """Layers of each stack and one row for everything else that has parameters, in order of execution."""
    sizes: dict[str, int] = {}
    owners = [layer.name for layer in spec.layers if layer.factory is not nn.Identity]
    for name in [*spec.shared, *owners]:
        group, row = row_group(name + ".x")
        sizes[group] = max(sizes.get(group, 0), row + 1)
    return sizes


class Part(NamedTuple):
    """What one rank knows of a signal: fp64 on the CPU, each of the signal's own fixed length on every rank."""

    sums: Tensor
    """Adds up over all ranks; what is replicated must be given by one of them alone."""
    maxima: Tensor
    """The largest counts; -inf where this rank has nothing to say. A minimum goes in negated."""


NOTHING = torch.zeros(0, dtype=torch.float64)


class Signal(ABC):
    """One kind of figure. A sampled step calls, in this order: `before_step`, the step, `before_probe`, the probe's
    forward pass (only if some signal `wants_probe`), `collect`, the two reductions, `profiles`."""

    wants_probe = False
    """Whether it listens to the forward pass of the fixed probe batch."""

    def start(self, engine: Engine, probe: Probe, step: int) -> str:
        """A session begins after `step` steps of the run, what it keeps in place. Collective.

        Returns:
            What cannot be shown and why, in one line for an alert; empty if all is well.
        """
        return ""

    def before_step(self, engine: Engine) -> None:  # noqa: B027 (most have nothing to do)
        """Start listening to the training step. Called again before a further try of a step that was thrown away."""

    def before_probe(self, engine: Engine, probe: Probe) -> None:  # noqa: B027
        """The step is done; start listening to the probe's forward pass (module.training is False in it)."""

    @abstractmethod
    def collect(self, engine: Engine) -> Part:
        """Stop listening and leave no hook; this rank's part."""

    @abstractmethod
    def profiles(self, sums: Tensor, maxima: Tensor) -> Profiles:
        """The figures by name, from what all ranks gave."""

    def state_dict(self) -> dict[str, Any]:
        """What it keeps over sessions, as JSON, the same on every rank; kept under its class name."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Put it back, in whatever layout; an empty one where the checkpoint has none."""

    def tensors(self) -> dict[str, Tensor]:
        """What it keeps that is too large for JSON: flat fp32 CPU tensors that nobody changes, alike on every rank."""
        return {}

    def load_tensors(self, read: Callable[[str], Tensor | None]) -> None:  # noqa: B027
        """Put them back, in whatever layout; `read(name)` is None where the checkpoint has none of that name."""
