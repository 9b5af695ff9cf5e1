"""What is done against instability: skip a step, lower the rate, go back, or stop. Every decision is an event.

The engine asks about each step before it is made; what is decided goes by losses, gradient norms and verdicts that
every rank knows alike, so that all decide the same without asking each other.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from tqdm import tqdm

from pretrain.checkpoint.callback import Checkpoints
from pretrain.checkpoint.restore import resume
from pretrain.config.schema import PolicySection
from pretrain.data.loader import next_indices
from pretrain.monitors.alerts import Verdicts, overflowed
from pretrain.monitors.rollbacks import Rollbacks
from pretrain.monitors.step_watch import StepWatch
from pretrain.monitors.verdicts import Level
from pretrain.parallel import collectives
from pretrain.parallel.engine import StepResult
from pretrain.state.reader import Checkpoint
from pretrain.state.values import count, mapping, number, sequence, text
from pretrain.training.callback import Callback, Remedy
from pretrain.training.loop import StepReport, Trainer
from pretrain.training.progress import Stop


@dataclass(frozen=True)
class Rate:
    """A factor on the learning rate in steps first..last."""

    factor: float
    first: int
    last: int

    def at(self, step: int) -> float:
        return self.factor if self.first <= step <= self.last else 1.0


@dataclass(frozen=True)
class Cause:
    """Why something must be done."""

    step: int
    reason: str
    actions: Sequence[str]
    trusted: int
    """The newest step whose state is beyond doubt."""
    figures: dict[str, Any]


NO_RATE = Rate(1.0, 0, 0)


class Policy(Callback):
    """Stands after what measures and before what saves.

    Args:
        section: the section `policy`.
        saves: to go back to; stands after this callback.
        verdicts: where there are signals; stands before this callback.
    """

    def __init__(self, section: PolicySection, saves: Checkpoints, verdicts: Verdicts | None):
        self.section, self.saves, self.verdicts = section, saves, verdicts
        self.watch = StepWatch(section)
        self.rate = NO_RATE
        self.rollbacks = Rollbacks()
        self.calm_sample = 0
        """Step of the last sample without an alarm that matters here."""
        self.alarmed: set[str] = set()
        """Signals that have one."""

    def on_start(self, trainer: Trainer) -> None:
        section = self.section
        if section.on_outlier or section.on_spike or section.on_not_finite or section.on_alarm:
            trainer.engine.judge = self.watch.judge

    def on_step_begin(self, trainer: Trainer, step: int) -> None:
        self.watch.begin(step)
        trainer.rate = self.rate.at(step)

    def on_skip(self, trainer: Trainer, step: int, result: StepResult) -> None:
        self.watch.threw_away(result, broken=not (result.finite or overflowed(trainer, result)))
        self._outliers(trainer, step)
        self._not_finite(trainer, step)
        self._spikes(trainer, step)
        self._alarms(trainer, step)

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        self.watch.made()
        self._outliers(trainer, report.step)
        self._spikes(trainer, report.step)
        self._alarms(trainer, report.step)

    def _outliers(self, trainer: Trainer, step: int) -> None:
        if self.watch.outlier and "scale_rate" in self.section.on_outlier:
            self._scale_rate(trainer, step, "outlier", self.watch.outlier)

    def _not_finite(self, trainer: Trainer, step: int) -> None:
        broken = self.watch.broken
        if self.section.on_not_finite and len(broken) >= self.section.not_finite_steps:
            reason = f"loss or gradient not finite in {len(broken)} batches in a row"
            figures = {"losses": [loss for loss, _ in broken], "grad_norms": [norm for _, norm in broken]}
            self.watch.broken = []
            self._act(trainer, Cause(step, reason, self.section.on_not_finite, self.watch.broken_since - 2, figures))

    def _spikes(self, trainer: Trainer, step: int) -> None:
        losses = self.watch.spikes
        if self.section.on_spike and len(losses) >= self.section.spike_steps:
            reason = f"spike: {len(losses)} batches in a row far above the last steps"
            self.watch.spikes = []
            # The state that the first of them met is in doubt as well.
            trusted = self.watch.spikes_since - 2
            self._act(trainer, Cause(step, reason, self.section.on_spike, trusted, {"losses": losses}))

    def _alarms(self, trainer: Trainer, step: int) -> None:
        if self.verdicts is None or self.verdicts.step != step or not self.section.on_alarm:
            return
        wanted = self.section.alarm_signals
        alarms = [v for v in self.verdicts.latest if v.level == Level.ALARM and (not wanted or v.signal in wanted)]
        new = [verdict for verdict in alarms if verdict.signal not in self.alarmed]
        self.alarmed = {verdict.signal for verdict in alarms}
        if not alarms and self.verdicts.sampled(step):
            self.calm_sample = step
        if new:
            figures = {verdict.signal: verdict.value for verdict in alarms}
            reason = f"alarm: {new[0].sentence}"
            self._act(trainer, Cause(step, reason, self.section.on_alarm, self.calm_sample, figures))

    def _act(self, trainer: Trainer, cause: Cause) -> None:
        if "stop" in cause.actions:
            raise Remedy(partial(self._stop, cause=cause))
        if "rollback" in cause.actions:
            raise Remedy(partial(self._roll_back, cause=cause))
        self._scale_rate(trainer, cause.step, cause.reason, cause.figures)

    def _scale_rate(self, trainer: Trainer, step: int, reason: str, figures: dict[str, Any]) -> None:
        """From the next try on; where the rate is lowered already, for longer."""
        self.rate = self._rate_from(trainer.progress.step + 1)
        trainer.folder.event("rate", step, reason=reason, **figures, factor=self.rate.factor, last_step=self.rate.last)
        say(step, reason, f"the learning rate times {self.rate.factor:g} up to step {self.rate.last}")

    def _rate_from(self, first: int) -> Rate:
        return Rate(self.section.rate_factor, first, first + self.section.rate_steps - 1)

    def _roll_back(self, trainer: Trainer, cause: Cause) -> None:
        """To the last checkpoint that can be trusted, and past the samples that led here; stops where that fails.

        A kill may come at any point. Newer checkpoints are set aside first: then, or in the middle of it, the next
        session follows the old branch. Once the event is written, it follows the new one, and cuts the logs itself.
        """
        section, position = self.section, trainer.loader.samples_consumed
        if self.rollbacks.since(cause.step - section.window_steps) >= section.max_rollbacks:
            self._stop(trainer, cause, f"; {section.max_rollbacks} rollbacks in {section.window_steps} steps suffice")
            return
        checkpoint = self.saves.last_trusted(trainer, cause.trusted)
        if checkpoint is None:
            self._stop(trainer, cause, f"; there is no checkpoint up to step {cause.trusted} to go back to")
            return
        skipped = skip_range(checkpoint, trainer, position, section.skip_samples)
        rate = self._rate_from(checkpoint.step + 1) if "scale_rate" in cause.actions else NO_RATE
        trainer.folder.event(
            "rollback",
            cause.step,
            reason=cause.reason,
            to_step=checkpoint.step,
            **cause.figures,
            sample_ranges=[skipped],
            rate_factor=rate.factor,
            rate_last_step=rate.last,
        )
        what = f"back to step {checkpoint.step}, without the samples {skipped[0]} to {skipped[1] - 1}"
        say(cause.step, cause.reason, what)
        resume(trainer, checkpoint, within_session=True)  # on_resume below reads the event

    def _stop(self, trainer: Trainer, cause: Cause, why: str = "") -> None:
        """With the last checkpoint that can be trusted as the newest; what went wrong is saved aside, for a look."""
        checkpoint = self.saves.last_trusted(trainer, cause.trusted)  # waits for a save that runs
        aside, reason = self.saves.save_aside(trainer), cause.reason + why
        kept = checkpoint.step if checkpoint else None
        trainer.folder.event("stop", cause.step, reason=reason, to_step=kept, aside=aside, **cause.figures)
        then = "no checkpoint is beyond doubt" if kept is None else f"step {kept} is the last checkpoint beyond doubt"
        say(cause.step, reason, f"stopped, {then}" + (f", the state as it is is in {aside}" if aside else ""))
        if checkpoint is not None:
            resume(trainer, checkpoint, within_session=True)
        else:
            self.saves.distrusts = True
        trainer.request_stop(Stop.UNSTABLE)

    def on_resume(self, trainer: Trainer, checkpoint: Checkpoint) -> None:
        """Also after a rollback: what the run's rollbacks have decided holds from here on."""
        self.rollbacks.read(trainer.folder)
        trainer.loader.skip(self.rollbacks.sample_ranges)
        for entry in self.rollbacks.unknown_to(checkpoint.step):
            if entry["rate_last_step"]:
                self.rate = Rate(entry["rate_factor"], entry["to_step"] + 1, entry["rate_last_step"])

    def state_dict(self) -> dict[str, Any]:
        rate = [self.rate.factor, self.rate.first, self.rate.last]
        alarms = {"calm_sample": self.calm_sample, "alarmed": sorted(self.alarmed)}
        return {"watch": self.watch.state_dict(), "rate": rate, **alarms}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.watch.load_state_dict(mapping(state.get("watch", {}), "watch"))
        factor, first, last = sequence(state.get("rate", [1.0, 0, 0]), "rate")
        self.rate = Rate(number(factor, "rate"), count(first, "rate"), count(last, "rate"))
        self.calm_sample = count(state.get("calm_sample", 0), "calm_sample")
        alarmed = state.get("alarmed", [])  # older ones say only whether there was any
        signals = [] if isinstance(alarmed, bool) else sequence(alarmed, "alarmed")
        self.alarmed = {text(signal, "alarmed") for signal in signals}


def say(step: int, reason: str, what: str) -> None:
    """A decision in one line above the progress bar, once for all ranks."""
    if collectives.is_first():
        with suppress(OSError):  # a closed terminal
            tqdm.write(f"step {step}: {what}; {reason}", file=sys.stderr)


def skip_range(checkpoint: Checkpoint, trainer: Trainer, position: int, samples: int) -> list[int]:
    """What is left out after a checkpoint, [first, end): so many unseen samples, and all up to `position`."""
    data = checkpoint.training()["data"]
    first = int(data["samples_consumed"])
    skipped = [tuple(pair) for pair in trainer.loader.state_dict()["skip_ranges"]]
    last = next_indices(first, samples, skipped)
    return [first, max(position, last[-1] + 1 if last else 0)]
