"""Linear warm-up, then the peak rate."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt

from pretrain.registry import Section
from pretrain.schedules.registry import SCHEDULES
from pretrain.schedules.shared import check_warmup, warmup_factor


class ConstantConfig(Section):
    """Linear warm-up to the peak, which is then kept."""

    kind: Literal["constant"] = "constant"
    warmup_steps: NonNegativeInt = 0
    """Steps of linear warm-up; step 1 has 1/warmup_steps of the peak rate."""


@SCHEDULES.register(ConstantConfig)
class Constant:
    """factor(s) = min(1, s/W).

    Raises:
        ConfigError: the warm-up is longer than max_steps.
    """

    def __init__(self, config: ConstantConfig, max_steps: int):
        check_warmup(config.warmup_steps, max_steps)
        self.warmup_steps = config.warmup_steps

    def factor(self, step: int) -> float:
        """Return the multiplier of the peak rate in optimizer step `step` (from 1)."""
        return warmup_factor(step, self.warmup_steps)
