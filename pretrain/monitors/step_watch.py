"""Which steps are outliers or spikes, from nothing but losses and gradient norms: the same on every rank."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pretrain.config.schema import PolicySection
from pretrain.monitors.spike_score import SpikeScore
from pretrain.parallel.engine import Refusal, StepResult
from pretrain.state.values import count, mapping, numbers

LOSS_NOT_FINITE = "loss not finite"


class StepWatch:
    """Robust z of each step's loss and gradient norm against those of the last steps that were made.

    OLMo-core's rule for throwing steps away is mean and deviation over 128 steps, 6 deviations; median and median
    deviation are not moved by what they are to find.

    Args:
        policy: its window and bounds.
    """

    def __init__(self, policy: PolicySection):
        self.policy = policy
        self.losses, self.grad_norms = SpikeScore(policy.window), SpikeScore(policy.window)
        self.step = 0
        """The step that is being tried."""
        self.outlier: dict[str, float] = {}
        """By how many deviations its try lies too high, if it does."""
        self.spikes: list[float] = []
        """Losses of the batches in a row that were outliers or spikes, up to now."""
        self.spikes_since = 0
        """The step at which they began."""
        self.broken: list[tuple[float, float]] = []
        """(loss, gradient norm) of the batches in a row that were not finite, up to now."""
        self.broken_since = 0

    def begin(self, step: int) -> None:
        """A try of a step follows."""
        self.step, self.outlier = step, {}

    def judge(self, loss: float, grad_norm: float) -> Refusal | None:
        """Judge a try, whose gradient norm is finite; remember it if it may be made. An `engine.Judge`."""
        if not math.isfinite(loss):
            return Refusal(LOSS_NOT_FINITE)
        scores = {"loss": self.losses.score(loss), "grad_norm": self.grad_norms.score(grad_norm)}
        high = {f"{name}_sigmas": score for name, score in scores.items() if score and score > self.policy.sigmas}
        self.outlier = high
        spike = bool(high) or (scores["loss"] or 0.0) > self.policy.spike_score
        self.spikes_since = self.spikes_since if self.spikes else self.step
        self.spikes = [*self.spikes, loss] if spike else []
        if high and "skip" in self.policy.on_outlier:
            named = " and ".join(f"{name.removesuffix('_sigmas')} {score:.3g}" for name, score in high.items())
            return Refusal(f"outlier: {named} robust deviations above the last steps", high)
        self.losses.add(loss)
        self.grad_norms.add(grad_norm)
        return None

    def threw_away(self, result: StepResult, broken: bool) -> None:
        """A try came to nothing; remember those that were not finite."""
        self.broken_since = self.broken_since if self.broken else self.step
        self.broken = [*self.broken, (result.loss, result.grad_norm)] if broken else []

    def made(self) -> None:
        """A step was made."""
        self.broken = []

    def state_dict(self) -> dict[str, Any]:
        return {
            "losses": self.losses.state_dict(),
            "grad_norms": self.grad_norms.state_dict(),
            "spikes": list(self.spikes),
            "spikes_since": self.spikes_since,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.losses.load_state_dict(mapping(state.get("losses", {}), "losses"))
        self.grad_norms.load_state_dict(mapping(state.get("grad_norms", {}), "grad_norms"))
        self.spikes = numbers(state.get("spikes", []), "spikes")
        self.spikes_since = count(state.get("spikes_since", 0), "spikes_since")
        self.broken = []
