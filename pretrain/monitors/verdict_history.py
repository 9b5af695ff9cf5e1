"""What verdicts must know of the samples before: little enough for every checkpoint, also at 1000 layers."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from pretrain.state.values import count, mapping, number, numbers, sequence

REMEMBERED = 8
"""Samples that a median is of."""
LEAST = 4
"""Samples without which there is none."""
EARLY_STEPS = 10
"""Post-LN without warm-up has made its jump by then (DeepNet: within about 2 steps)."""
STILL_STEPS, STILL = 20, 0.2
"""A model whose moves over that many steps after these add up to no more than this share of its update stands still."""
GRADIENT, UPDATE, MOVE = "gradient_norm", "model_update", "model_update_step"

Profiles = Mapping[str, Mapping[str, Sequence[Any]]]


class History:
    """Last gradient norms of each layer, and how the model's update has gone."""

    def __init__(self) -> None:
        self._gradients: dict[str, deque[list[float]]] = {}
        """Group -> the last samples' values a layer."""
        self._zeros: dict[str, list[int]] = {}
        """Group -> samples in a row without a gradient."""
        self._early = 0.0
        """Largest update of the first steps."""
        self._largest = 0.0
        self._moves: list[tuple[int, float]] = []
        """(step, move since the sample before) of the last samples after the first steps."""

    def add(self, step: int, profiles: Profiles) -> None:
        """Remember a sample."""
        for group, values in profiles.get(GRADIENT, {}).items():
            norms = [math.nan if value is None else float(value) for value in values]
            self._forget_other_depths(group, len(norms))
            zeros = self._zeros.get(group) or [0] * len(norms)
            self._zeros[group] = [times + 1 if norm == 0 else 0 for times, norm in zip(zeros, norms, strict=True)]
            if "." not in group or len(norms) == 1:  # of layers the wholes: parts would be five times as much to keep
                self._gradients.setdefault(group, deque(maxlen=REMEMBERED)).append(norms)
        for values in profiles.get(UPDATE, {}).values():
            for value in values:
                if value is not None and math.isfinite(value):
                    self._largest = max(self._largest, value)
                    self._early = max(self._early, value) if step <= EARLY_STEPS else self._early
        for values in profiles.get(MOVE, {}).values() if step > EARLY_STEPS else ():
            self._moves += [(step, math.inf if value is None else value) for value in values]
            while len(self._moves) > LEAST and self._moves[1][0] <= step - STILL_STEPS:
                self._moves.pop(0)

    def _forget_other_depths(self, group: str, layers: int) -> None:
        """What a checkpoint tells of another number of layers is not of this model."""
        if len(self._zeros.get(group, ())) != layers:
            self._zeros.pop(group, None)
        if any(len(norms) != layers for norms in self._gradients.get(group, ())):
            del self._gradients[group]

    def median(self, group: str, layer: int) -> float | None:
        """Median gradient norm of a layer; None without enough samples."""
        norms = [norms[layer] for norms in self._gradients.get(group, ()) if layer < len(norms)]
        found = [norm for norm in norms if math.isfinite(norm)]
        return statistics.median(found) if len(found) >= LEAST else None

    def zeros(self, group: str, layer: int) -> int:
        """Samples in a row in which no gradient has reached a layer."""
        zeros = self._zeros.get(group, ())
        return zeros[layer] if layer < len(zeros) else 0

    def early_share(self, move: float) -> float:
        """Share of the largest update that the first steps made, if the model stands still since; else 0.

        Args:
            move: of this sample, against the one before.
        """
        steps = [step for step, _ in self._moves]
        if len(steps) < LEAST - 1 or steps[-1] - steps[0] < STILL_STEPS or not self._largest > 0:
            return 0.0
        moved = move + sum(found for _, found in self._moves[1:])
        return self._early / self._largest if moved <= STILL * self._largest else 0.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "gradients": {group: list(samples) for group, samples in self._gradients.items()},
            "zeros": {group: zeros for group, zeros in self._zeros.items() if any(zeros)},
            "update": [self._early, self._largest],
            "moves": self._moves,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._gradients = {
            group: deque((numbers(norms, "gradients") for norms in sequence(samples, "gradients")), maxlen=REMEMBERED)
            for group, samples in mapping(state.get("gradients", {}), "gradients").items()
        }
        self._zeros = {
            group: [count(zeros, "zeros") for zeros in sequence(layers, "zeros")]
            for group, layers in mapping(state.get("zeros", {}), "zeros").items()
        }
        early, largest, *_ = sequence(state.get("update", [0.0, 0.0]), "update")  # older ones have a third
        self._early, self._largest = number(early, "update"), number(largest, "update")
        moves = sequence(state.get("moves", []), "moves")
        self._moves = [(count(step, "moves"), number(move, "moves")) for step, move in moves]
