"""Linear warm-up, then linear decay."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt

from pretrain.registry import Section
from pretrain.schedules.registry import SCHEDULES
from pretrain.schedules.shared import check_warmup, progress, warmup_factor


class LinearConfig(Section):
    """Linear warm-up to the peak, then a straight line to `final_factor` in the last step."""

    kind: Literal["linear"] = "linear"
    warmup_steps: NonNegativeInt = 0
    """Steps of linear warm-up; step 1 has 1/warmup_steps of the peak rate."""
    final_factor: NonNegativeFloat = 0.0
    """Multiplier of the peak rate in the last step."""


@SCHEDULES.register(LinearConfig)
class Linear:
    """factor(s) = s/W up to W, then 1 - (1 - f) (s - W)/(T - W), with f = final_factor and T = max_steps.

    Raises:
        ConfigError: the warm-up is longer than max_steps.
    """

    def __init__(self, config: LinearConfig, max_steps: int):
        check_warmup(config.warmup_steps, max_steps)
        self.warmup_steps, self.final_factor, self.max_steps = config.warmup_steps, config.final_factor, max_steps

    def factor(self, step: int) -> float:
        """Return the multiplier of the peak rate in optimizer step `step` (from 1)."""
        done = progress(step, self.warmup_steps, self.max_steps)
        return warmup_factor(step, self.warmup_steps) * (1.0 - (1.0 - self.final_factor) * done)
