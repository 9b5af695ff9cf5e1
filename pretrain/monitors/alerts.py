"""Verdicts while training: on the layers at every sample, on the loss at every step; told when one gets worse."""

from __future__ import annotations

import json
from typing import Any

from pretrain.monitors.depth import DepthSignals
from pretrain.monitors.metrics import Metrics
from pretrain.monitors.verdict_history import MOVE, History, Profiles
from pretrain.monitors.verdict_rules import RULES
from pretrain.monitors.verdicts import NOT_FINITE, Level, Verdict, ranked, verdicts, worst_of
from pretrain.parallel.engine import StepResult
from pretrain.state.run_files import VERDICTS
from pretrain.state.values import count, mapping, sequence
from pretrain.training.callback import Callback
from pretrain.training.evaluation import Evaluation
from pretrain.training.loop import StepReport, Trainer

CALM = 3
"""Judgements in a row that must be better before the same verdict counts as getting worse again."""
STUCK_FROM = 0.5
"""Share of the peak rate below which it is natural for a model to stand still."""
SOURCE_USE = "source_use"
"""Measured at evaluations, not with the samples of the layers."""
RECENT = 100
"""Steps over which batches that were thrown away are counted."""
REPEATS = {rule.name: rule.repeats for rule in RULES if rule.repeats}


class Verdicts(Callback):
    """The same on every rank. RUN/verdicts.json has the newest ones.

    Args:
        depth: whose samples are judged; stands before this callback.
        metrics: whose spike score is judged at each step; stands before this callback.
        evaluation: whose source use is judged after the warm-up; stands before this callback.
    """

    def __init__(self, depth: DepthSignals, metrics: Metrics, evaluation: Evaluation):
        self.depth, self.metrics, self.evaluation = depth, metrics, evaluation
        self.history = History()
        self.step = 0
        """The last one that was judged."""
        self.latest: list[Verdict] = []
        """The newest on each signal, the worst first."""
        self._thrown: list[tuple[int, bool]] = []
        """(step, whether it was finite) of the batches that were thrown away lately."""
        self._told: dict[str, int] = {}
        """Signal -> level that was told last."""
        self._better: dict[str, int] = {}
        """Signal -> judgements in a row that were better than that."""

    @property
    def worst(self) -> Verdict | None:
        """For a line of text; None if all is well."""
        return worst_of(self.latest)

    def sampled(self, step: int) -> bool:
        """Whether the layers were looked at in this step."""
        return self.depth.latest[0] == step

    def on_skip(self, trainer: Trainer, step: int, result: StepResult) -> None:
        if not overflowed(trainer, result):
            self._thrown.append((step, result.finite))
            self._judge(trainer, step, self._of_the_loss(step))

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        profiles = self._of_the_loss(report.step)
        score = self.metrics.latest.get("spike_score")
        if score is not None:
            profiles["spike_score"] = {"model": [score]}
        schedule: Any = trainer.experiment.schedule
        evaluated = self.evaluation.evaluated_step == report.step > schedule.warmup_steps
        if evaluated and self.evaluation.source_use is not None:
            profiles["source_use"] = {"model": [self.evaluation.source_use]}
        if self.sampled(report.step):
            profiles |= self.depth.latest[1]
        if report.lr < STUCK_FROM * trainer.experiment.optimizer.lr:
            profiles.pop(MOVE, None)
        self._judge(trainer, report.step, profiles)

    def _of_the_loss(self, step: int) -> dict[str, Any]:
        self._thrown = [(at, finite) for at, finite in self._thrown if at > step - RECENT]
        broken = sum(not finite for _, finite in self._thrown)
        return {"skipped_steps": {"model": [len(self._thrown)]}, "nonfinite_steps": {"model": [broken]}}

    def _judge(self, trainer: Trainer, step: int, profiles: Profiles) -> None:
        judged = {verdict.signal: verdict for verdict in verdicts(profiles, self.history, trainer.experiment)}
        # What was not looked at stays as it was.
        stays = {v.signal: v for v in self.latest if v.signal == SOURCE_USE or not self.sampled(step)}
        if self.sampled(step):
            self.history.add(step, profiles)
        else:
            judged.pop(NOT_FINITE)
        levels = {verdict.signal: verdict.level for verdict in self.latest}
        self.step, self.latest = step, ranked((stays | judged).values())
        for verdict in judged.values():
            repeated = judged.get(REPEATS.get(verdict.signal, ""))
            said = repeated is not None and repeated.level >= verdict.level
            if self._worse(verdict) and not said:
                told = verdict.to_json()
                trainer.folder.event("alert", step, reason=told.pop("sentence"), **told)
        if self.sampled(step) or levels != {verdict.signal: verdict.level for verdict in self.latest}:
            newest = {"step": step, "verdicts": [verdict.to_json() for verdict in self.latest]}
            trainer.folder.write(VERDICTS, json.dumps(newest, indent=1) + "\n")

    def _worse(self, verdict: Verdict) -> bool:
        """Whether to tell it: worse than what was told last, which is forgotten after a calm."""
        signal, told = verdict.signal, self._told.get(verdict.signal, Level.OK)
        self._better[signal] = self._better.get(signal, 0) + 1 if verdict.level < told else 0
        if verdict.level > told or self._better[signal] >= CALM:
            self._told[signal], self._better[signal] = int(verdict.level), 0
        return verdict.level > told

    def state_dict(self) -> dict[str, Any]:
        told = {"told": dict(self._told), "better": dict(self._better)}
        return {"history": self.history.state_dict(), "thrown": [list(entry) for entry in self._thrown], **told}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history.load_state_dict(mapping(state.get("history", {}), "history"))
        self._thrown = [
            (count(step, "thrown"), bool(finite)) for step, finite in sequence(state.get("thrown", []), "thrown")
        ]
        self._told, self._better = (
            {signal: count(level, key) for signal, level in mapping(state.get(key, {}), key).items()}
            for key in ("told", "better")
        )
        self.step, self.latest = 0, []


def overflowed(trainer: Trainer, result: StepResult) -> bool:
    """Whether a batch was thrown away on the way to fp16's loss scale, which is found by overflows."""
    return bool(trainer.engine.loss_scaler_state()) and not result.finite
