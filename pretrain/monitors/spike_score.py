"""How far a loss lies outside what the last steps have shown."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

from pretrain.state.values import numbers

LEAST_HISTORY = 8
"""Losses without which a spread means nothing; of a long window a quarter is asked for."""
CONSISTENT = 1.4826
"""1 / quantile of N(0, 1) at 3/4: turns the median absolute deviation of normal values into their deviation."""
RESOLUTION = 2.0**-23
"""Of a loss in fp32, against its size: a spread below it is rounding."""


class SpikeScore:
    """Robust z of a loss: (loss - median) / (1.4826 median |loss_i - median|) over the last losses.

    Unlike mean and deviation it is not moved by the spikes that it is to find; for normal losses the two agree.

    Args:
        window: W, losses that are remembered.
    """

    def __init__(self, window: int):
        self.losses: deque[float] = deque(maxlen=window)
        self.least = min(window, max(LEAST_HISTORY, window // 4))
        """History without which there is no score."""

    def score(self, loss: float) -> float | None:
        """z of a loss, which is not remembered by this; None without enough history or where the loss is not finite."""
        if len(self.losses) < self.least or not math.isfinite(loss):
            return None
        middle = statistics.median(self.losses)
        deviation = CONSISTENT * statistics.median(abs(seen - middle) for seen in self.losses)
        spread = max(deviation, RESOLUTION * abs(middle))
        return (loss - middle) / spread if spread else None

    def add(self, loss: float) -> None:
        """Remember a loss; one that is not finite would spoil the median and is left out."""
        if math.isfinite(loss):
            self.losses.append(loss)

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self.losses)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what an earlier session remembers; of a longer window the newest."""
        self.losses.clear()
        self.losses.extend(numbers(state.get("losses", []), "losses"))
