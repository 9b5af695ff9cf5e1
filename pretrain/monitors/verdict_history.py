"""What verdicts must know of the samples before: little enough for every checkpoint, also at 1000 layers."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

REMEMBERED = 8
"""Samples that a median is of."""
LEAST = 4
"""Samples without which there is none."""
EARLY_STEPS = 10
"""Post-LN without warm-up has made its jump by then (DeepNet: within about 2 steps)."""
FLAT_SAMPLES, FLAT = 4, 0.05
"""So many samples that differ by no more than this share of the largest are flat."""
GRADIENT, UPDATE = "gradient_norm", "model_update"

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
        self._last: deque[float] = deque(maxlen=FLAT_SAMPLES - 1)

    def add(self, step: int, profiles: Profiles) -> None:
        """Remember a sample."""
        for group, values in profiles.get(GRADIENT, {}).items():
            norms = [math.nan if value is None else float(value) for value in values]
            zeros = self._zeros.get(group) or [0] * len(norms)
            self._zeros[group] = [count + 1 if norm == 0 else 0 for count, norm in zip(zeros, norms, strict=True)]
            if "." not in group:  # whole layers: their parts would be five times as much to keep
                self._gradients.setdefault(group, deque(maxlen=REMEMBERED)).append(norms)
        for values in profiles.get(UPDATE, {}).values():
            for value in values:
                if value is not None and math.isfinite(value):
                    self._largest = max(self._largest, value)
                    self._early = max(self._early, value) if step <= EARLY_STEPS else self._early
                    self._last.append(value)

    def median(self, group: str, layer: int) -> float | None:
        """Median gradient norm of a layer; None without enough samples."""
        found = [norms[layer] for norms in self._gradients.get(group, ()) if math.isfinite(norms[layer])]
        return statistics.median(found) if len(found) >= LEAST else None

    def zeros(self, group: str, layer: int) -> int:
        """Samples in a row in which no gradient has reached a layer."""
        return self._zeros[group][layer] if group in self._zeros else 0

    def early_share(self, value: float) -> float:
        """Share of the largest update, `value` included, that the first steps made, if the last updates are flat."""
        last = [*self._last, value]
        largest = max(self._largest, value)
        if len(last) < FLAT_SAMPLES or not largest > 0 or max(last) - min(last) > FLAT * largest:
            return 0.0
        return self._early / largest

    def state_dict(self) -> dict[str, Any]:
        return {
            "gradients": {group: list(samples) for group, samples in self._gradients.items()},
            "zeros": {group: zeros for group, zeros in self._zeros.items() if any(zeros)},
            "update": [self._early, self._largest, list(self._last)],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        gradients = state.get("gradients", {})
        self._gradients = {group: deque(samples, maxlen=REMEMBERED) for group, samples in gradients.items()}
        self._zeros = {group: list(zeros) for group, zeros in state.get("zeros", {}).items()}
        self._early, self._largest, last = state.get("update", (0.0, 0.0, ()))
        self._last = deque(last, maxlen=FLAT_SAMPLES - 1)
