"""Warm-up, stable, decay (MiniCPM, arXiv 2404.06395; the 1 - sqrt shape: Haegele et al., arXiv 2405.18392)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from pretrain.registry import Section
from pretrain.schedules.registry import SCHEDULES
from pretrain.schedules.shared import check_tail, check_warmup, progress, warmup_factor

# How much of the decay is done when a share p of its steps is.
SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda p: p,
    "sqrt": math.sqrt,
    "cosine": lambda p: 0.5 * (1.0 - math.cos(math.pi * p)),
}


class WsdConfig(Section):
    """Linear warm-up to the peak, which is kept until a decay over the last steps."""

    kind: Literal["wsd"] = "wsd"
    warmup_steps: NonNegativeInt = 0
    """Steps of linear warm-up; step 1 has 1/warmup_steps of the peak rate."""
    decay_steps: PositiveInt | None = None
    """Steps of the final decay; default: a tenth of train.max_steps (at least one)."""
    decay_shape: Literal["linear", "sqrt", "cosine"] = "linear"
    """Course of the decay over its share p in [0, 1]: 1 - p, 1 - sqrt(p), or half a cosine."""
    final_factor: NonNegativeFloat = 0.0
    """Multiplier of the peak rate in the last step."""


@SCHEDULES.register(WsdConfig)
class Wsd:
    """factor(s) = min(1, s/W) up to T - D, then 1 - (1 - f) g(p), p = (s - T + D)/D, D = decay_steps, T = max_steps.

    Raises:
        ConfigError: warm-up and decay do not fit into max_steps.
    """

    def __init__(self, config: WsdConfig, max_steps: int):
        decay_steps = config.decay_steps or max(1, max_steps // 10)
        check_warmup(config.warmup_steps, max_steps)
        check_tail("decay_steps", decay_steps, config.warmup_steps, max_steps)
        self.warmup_steps, self.final_factor = config.warmup_steps, config.final_factor
        self.shape = SHAPES[config.decay_shape]
        self.decay_start, self.max_steps = max_steps - decay_steps, max_steps

    def factor(self, step: int) -> float:
        """Return the multiplier of the peak rate in optimizer step `step` (from 1)."""
        done = self.shape(progress(step, self.decay_start, self.max_steps))
        return warmup_factor(step, self.warmup_steps) * (1.0 - (1.0 - self.final_factor) * done)
