"""Reciprocal square root with a time scale, warm-up and cool-down (ViT-22B, arXiv 2302.05442; ViT-G, 2106.04560)."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from pretrain.registry import Section
from pretrain.schedules.registry import SCHEDULES
from pretrain.schedules.shared import check_tail, check_warmup, warmup_factor


class ReciprocalSqrtConfig(Section):
    """Linear warm-up, reciprocal square root, and a linear cool-down to zero over the last steps."""

    kind: Literal["reciprocal_sqrt"] = "reciprocal_sqrt"
    warmup_steps: NonNegativeInt = 0
    """Steps of linear warm-up; step 1 has 1/warmup_steps of the peak rate (ViT-22B: 10000)."""
    timescale: PositiveInt = 10000
    """Steps after the warm-up until the rate has fallen to 1/sqrt(2) of the peak."""
    cooldown_steps: NonNegativeInt = 0
    """Steps of the final straight line to zero; 0: none (ViT-22B: 30000 of 177000)."""


@SCHEDULES.register(ReciprocalSqrtConfig)
class ReciprocalSqrt:
    """factor(s) = min(1, s/W) min(1, (T - s)/C) / sqrt(1 + max(0, s - W)/timescale), C = cooldown_steps, T = max_steps.

    Raises:
        ConfigError: warm-up and cool-down do not fit into max_steps.
    """

    def __init__(self, config: ReciprocalSqrtConfig, max_steps: int):
        check_warmup(config.warmup_steps, max_steps)
        check_tail("cooldown_steps", config.cooldown_steps, config.warmup_steps, max_steps)
        self.warmup_steps, self.timescale = config.warmup_steps, config.timescale
        self.cooldown_steps, self.max_steps = config.cooldown_steps, max_steps

    def factor(self, step: int) -> float:
        """Return the multiplier of the peak rate in optimizer step `step` (from 1)."""
        decay = 1.0 / math.sqrt(1.0 + max(0, step - self.warmup_steps) / self.timescale)
        left = max(0, self.max_steps - step)
        cooldown = min(1.0, left / self.cooldown_steps) if self.cooldown_steps else 1.0
        return warmup_factor(step, self.warmup_steps) * decay * cooldown
