"""Linear warm-up, then the inverse square root of the step (Vaswani et al., arXiv 1706.03762, section 5.3)."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import PositiveInt

from pretrain.registry import Section
from pretrain.schedules.registry import SCHEDULES
from pretrain.schedules.shared import check_warmup, warmup_factor


class InverseSqrtConfig(Section):
    """Linear warm-up to the peak, then a decay with the inverse square root of the step; it has no end."""

    kind: Literal["inverse_sqrt"] = "inverse_sqrt"
    warmup_steps: PositiveInt = 4000
    """Steps of linear warm-up; they also set the pace of the decay."""


@SCHEDULES.register(InverseSqrtConfig)
class InverseSqrt:
    """factor(s) = min(s/W, sqrt(W/s)): the paper's min(s^-0.5, s W^-1.5), scaled to a peak of 1.

    Raises:
        ConfigError: the warm-up is longer than max_steps.
    """

    def __init__(self, config: InverseSqrtConfig, max_steps: int):
        check_warmup(config.warmup_steps, max_steps)
        self.warmup_steps = config.warmup_steps

    def factor(self, step: int) -> float:
        """Return the multiplier of the peak rate in optimizer step `step` (from 1)."""
        if step <= self.warmup_steps:
            return warmup_factor(step, self.warmup_steps)
        return math.sqrt(self.warmup_steps / step)
