"""The first loss after a resume must be the one that the earlier session had there, or would have had.

Weights that were restored for the optimizer but not for the forward pass, other data, another layout's error: all of
them show in that one figure. Only a figure for the very same samples is held against it: losses of neighbouring steps
may differ by any amount.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pretrain.errors import ResumeMismatch
from pretrain.parallel import collectives
from pretrain.state.reader import Checkpoint
from pretrain.state.run_files import EVENTS, METRICS, records
from pretrain.training.callback import Callback
from pretrain.training.loop import StepReport, Trainer

TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2, "fp16": 2e-2}
"""Relative difference that another layout's rounding explains; 1e-6 and 3e-3 were seen."""
LONG_STEP = 10.0
"""Seconds."""


class Continuity(Callback):
    """Stands first, so that a session that went wrong leaves neither metrics nor a checkpoint.

    When a session ends, its checkpoint records what evaluation gives on the batch that would come next; a resume
    evaluates that batch before its first step. One that was killed has its next loss in the metrics, as a rule: the
    first step's is compared with it. Either counts only if the batch is the same: a rollback, a skipped batch or
    `data.skip_ranges` may have put another one there.
    """

    def __init__(self) -> None:
        self.recorded: dict[str, Any] = {}
        """step and evaluation loss of the batch behind the checkpoint, where they are known."""
        self._resumed = False
        self._saved: float | None = None
        """Evaluation loss on the samples that follow on the data state `_data`."""
        self._data: dict[str, Any] = {}
        self._logged: dict[str, Any] = {}
        """loss and sample_ranges of the step that comes next, as a session before had them."""
        self._tolerance = 0.0
        self._step_seconds = 0.0

    def on_resume(self, trainer: Trainer, checkpoint: Checkpoint) -> None:
        saved, self.recorded = self.recorded, {}
        self._resumed = trainer.experiment.checkpoint.verify_resume
        if not self._resumed:
            return
        precisions = {trainer.experiment.train.precision, checkpoint.manifest.layout.get("precision", "fp32")}
        self._tolerance = max(TOLERANCE[precision] for precision in precisions)
        step = trainer.progress.step + 1
        self._saved = saved["loss"] if saved.get("step") == step else None
        self._data = checkpoint.training()["data"]
        self._logged = _logged(trainer.folder.path, step)

    def on_start(self, trainer: Trainer) -> None:
        """Every callback has said by now which samples it leaves out."""
        if not self._resumed or self._saved is None:
            return
        if trainer.loader.state_dict()["skip_ranges"] != self._data["skip_ranges"]:
            return  # another batch comes next
        found = _next_loss(trainer)
        problem = "" if found is None else self._difference(found, self._saved, "evaluation loss")
        self._stop_if(collectives.first_text(problem), trainer, trainer.progress.step + 1)

    def on_rollback(self, trainer: Trainer, checkpoint: Checkpoint) -> None:
        """Other samples come next than those that the checkpoint was followed by."""
        self.recorded, self._resumed = {}, False

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        self._step_seconds = report.step_seconds
        if not self._resumed:
            return
        self._resumed = False
        # Not what the loader says of itself: that it stands elsewhere is one of the faults to be seen.
        data = self._data | {"skip_ranges": trainer.loader.state_dict()["skip_ranges"]}
        same = self._logged.get("sample_ranges") == [list(pair) for pair in trainer.loader.ranges_after(data)]
        problem = self._difference(report.result.loss, self._logged["loss"], "loss") if same else ""
        self._stop_if(collectives.share_text(problem), trainer, report.step)  # rank 0 reads the metrics

    def _difference(self, found: float, expected: float, name: str) -> str:
        close = math.isclose(found, expected, rel_tol=self._tolerance, abs_tol=self._tolerance)
        return "" if close else f"{name} {found:.6g} instead of {expected:.6g}"

    def _stop_if(self, reason: str, trainer: Trainer, step: int) -> None:
        if not reason:
            return
        logged = {"expected_loss": self._logged.get("loss"), "sample_ranges": self._logged.get("sample_ranges")}
        trainer.folder.event("alert", step, reason=reason, **logged)
        raise ResumeMismatch(
            f"step {step}, the first after the resume: {reason}; nothing was saved: look for what changed "
            "(code, libraries, data, layout), or go on with checkpoint.verify_resume=false"
        )

    def on_end(self, trainer: Trainer) -> None:
        """Evaluating a batch takes a third of a step: who wants to stop a run of long steps is not kept waiting."""
        hurry = trainer.stop.from_outside and self._step_seconds > LONG_STEP
        if not collectives.agree_any(hurry) and (loss := _next_loss(trainer)) is not None:
            self.recorded = {"step": trainer.progress.step + 1, "loss": loss}

    def state_dict(self) -> dict[str, Any]:
        return self.recorded

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.recorded = dict(state)


def _next_loss(trainer: Trainer) -> float | None:
    """What evaluation gives on the global batch that comes next; None if it has no targets. Collective."""
    position = trainer.loader.state_dict()
    total, count = trainer.engine.evaluate(trainer.loader.next())
    trainer.loader.load_state_dict(position)
    return total / count if count else None


def _logged(run: Path, step: int) -> dict[str, Any]:
    """What a session before had at `step`: loss and sample_ranges, from metrics.jsonl or, where a resume stopped and
    the metrics were cut, from events.jsonl; empty if nothing tells on which samples."""
    found: dict[str, Any] = {}
    for name, key in ((EVENTS, "expected_loss"), (METRICS, "loss")):
        for entry in records(run / name):
            if entry.get("step") == step and isinstance(entry.get(key), float) and entry.get("sample_ranges"):
                found = {"loss": entry[key], "sample_ranges": entry["sample_ranges"]}
    return found
