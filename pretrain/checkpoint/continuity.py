"""The first loss after a resume must be the one that the earlier session had there, or would have had.

Weights that were restored for the optimizer but not for the forward pass, other data, another layout's error: all of
them show in that one figure.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pretrain.errors import ResumeMismatch
from pretrain.parallel import collectives
from pretrain.state.reader import Checkpoint
from pretrain.state.run_files import EVENTS, METRICS
from pretrain.training.callback import Callback
from pretrain.training.loop import StepReport, Trainer

TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2, "fp16": 2e-2}
"""Relative difference that another layout's rounding explains; 1e-6 and 3e-3 were seen."""
JUMP = 0.5
"""Where only the loss of the step before is known: the share of it, and the nats, by which the next may lie above."""


class Continuity(Callback):
    """Stands first, so that a session that went wrong leaves neither metrics nor a checkpoint.

    When a session ends, the checkpoint records the loss of the step that would come next (by a forward pass, where
    training adds neither dropout nor anything to the loss). One that was killed has it in its metrics, as a rule.
    """

    def __init__(self) -> None:
        self.recorded: dict[str, Any] = {}
        """step and loss of the first step behind the checkpoint, where they are known."""
        self._resumed = False
        self._expected: float | None = None
        self._before: float | None = None
        self._tolerance = 0.0

    def on_resume(self, trainer: Trainer, checkpoint: Checkpoint) -> None:
        saved, self.recorded = self.recorded, {}
        self._resumed = trainer.experiment.checkpoint.verify_resume
        precisions = {trainer.experiment.train.precision, checkpoint.manifest.layout.get("precision", "fp32")}
        self._tolerance = max(TOLERANCE[precision] for precision in precisions)
        self._before, step = trainer.progress.loss, trainer.progress.step + 1
        if checkpoint.training()["data"]["skip_ranges"] == trainer.loader.state_dict()["skip_ranges"]:
            self._expected = _logged_loss(trainer.folder.path, step)
            if self._expected is None and saved.get("step") == step:
                self._expected = saved["loss"]

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        if not self._resumed:
            return
        self._resumed = False
        problem = self._problem(report.result.loss) if collectives.is_first() else ""
        if reason := collectives.first_text(problem):
            trainer.folder.event("alert", report.step, reason=reason, expected_loss=self._expected)
            raise ResumeMismatch(
                f"step {report.step}, the first after the resume: {reason}; nothing was saved: look for what changed "
                "(code, libraries, data, layout), or go on with checkpoint.verify_resume=false"
            )

    def _problem(self, loss: float) -> str:
        if self._expected is not None:
            close = math.isclose(loss, self._expected, rel_tol=self._tolerance, abs_tol=self._tolerance)
            return "" if close else f"loss {loss:.6g} instead of {self._expected:.6g}"
        if self._before is not None and loss > self._before * (1 + JUMP) + JUMP:
            return f"loss {loss:.6g} after {self._before:.6g} in the step before"
        return ""

    def on_end(self, trainer: Trainer) -> None:
        experiment = trainer.experiment
        if experiment.model.dropout or experiment.loss.label_smoothing or experiment.loss.z_loss:
            return
        position = trainer.loader.state_dict()
        total, count = trainer.engine.evaluate(trainer.loader.next())
        trainer.loader.load_state_dict(position)
        if count:
            self.recorded = {"step": trainer.progress.step + 1, "loss": total / count}

    def state_dict(self) -> dict[str, Any]:
        return self.recorded

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.recorded = dict(state)


def _logged_loss(run: Path, step: int) -> float | None:
    """The loss that a session before had at `step`, from metrics.jsonl or, where a resume stopped, events.jsonl."""
    found = None
    for name, key in ((EVENTS, "expected_loss"), (METRICS, "loss")):
        path = run / name
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                entry = json.loads(line)
            except ValueError:  # half a line of a killed writer
                continue
            if entry.get("step") == step and entry.get(key) is not None:
                found = entry[key]
    return found
