"""Linear warm-up, then half a cosine (Loshchilov and Hutter, arXiv 1608.03983, without restarts)."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt

from pretrain.registry import Section
from pretrain.schedules.registry import SCHEDULES
from pretrain.schedules.shared import check_warmup, progress, warmup_factor


class CosineConfig(Section):
    """Linear warm-up to the peak, then half a cosine down to `final_factor` in the last step."""

    kind: Literal["cosine"] = "cosine"
    warmup_steps: NonNegativeInt = 0
    """Steps of linear warm-up; step 1 has 1/warmup_steps of the peak rate."""
    final_factor: NonNegativeFloat = 0.0
    """Multiplier of the peak rate in the last step."""


@SCHEDULES.register(CosineConfig)
class Cosine:
    """factor(s) = s/W up to W, then f + (1 - f) (1 + cos(pi (s - W)/(T - W)))/2, f = final_factor, T = max_steps.

    Raises:
        ConfigError: the warm-up is longer than max_steps.
    """

    def __init__(self, config: CosineConfig, max_steps: int):
        check_warmup(config.warmup_steps, max_steps)
        self.warmup_steps, self.final_factor, self.max_steps = config.warmup_steps, config.final_factor, max_steps

    def factor(self, step: int) -> float:
        """Return the multiplier of the peak rate in optimizer step `step` (from 1)."""
        done = progress(step, self.warmup_steps, self.max_steps)
        decay = self.final_factor + (1.0 - self.final_factor) * 0.5 * (1.0 + math.cos(math.pi * done))
        return warmup_factor(step, self.warmup_steps) * decay
