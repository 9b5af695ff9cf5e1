"""What the schedules share: the convention of steps, the linear warm-up, and the checks of their lengths.

Convention: steps count from 1. `factor(s)` multiplies the peak rate in optimizer step s. A warm-up of W steps gives
step 1 the factor 1/W and step W the factor 1. A schedule that decays reaches its `final_factor` in the last step,
s = max_steps, and stays there for any later s; with `final_factor` 0 the last step therefore changes nothing.
"""

from __future__ import annotations

from typing import Protocol

from pretrain.errors import ConfigError


class Schedule(Protocol):
    """The multiplier of the peak learning rate as a pure function of the step."""

    def factor(self, step: int) -> float:
        """Return the multiplier used by optimizer step `step` (>= 1)."""
        ...


def warmup_factor(step: int, warmup_steps: int) -> float:
    """Return min(1, step / warmup_steps); 1 without a warm-up."""
    return min(1.0, step / warmup_steps) if warmup_steps else 1.0


def progress(step: int, start: int, end: int) -> float:
    """Return how far `step` is on the way from `start` (0.0) to `end` (1.0), clipped to [0, 1]."""
    if step <= start:
        return 0.0
    return 1.0 if step >= end else (step - start) / (end - start)


def check_warmup(warmup_steps: int, max_steps: int) -> None:
    """Raise ConfigError if the warm-up does not fit into the run."""
    if warmup_steps > max_steps:
        raise ConfigError(
            f"schedule.warmup_steps = {warmup_steps} is longer than train.max_steps = {max_steps}; "
            f"set schedule.warmup_steps to {max_steps} or less, or raise train.max_steps"
        )


def check_tail(key: str, steps: int, warmup_steps: int, max_steps: int) -> None:
    """Raise ConfigError if warm-up and the final decay `key` of `steps` steps overlap."""
    if warmup_steps + steps > max_steps:
        raise ConfigError(
            f"schedule.{key} = {steps} and schedule.warmup_steps = {warmup_steps} together are longer than "
            f"train.max_steps = {max_steps}; set schedule.{key} to {max_steps - warmup_steps} or less"
        )
