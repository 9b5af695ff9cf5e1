"""The callback that saves at intervals, at the end, and when a session is stopped."""

from __future__ import annotations

import sys
import time
from typing import Any

from pretrain.checkpoint.save import prune, save
from pretrain.errors import SaveFailed
from pretrain.parallel import collectives
from pretrain.training.callback import Callback
from pretrain.training.loop import StepReport, Trainer


class Checkpoints(Callback):
    """Stands last, so that what it saves is complete.

    Args:
        layout: how this session is laid out, for the manifest.
        texts: files that make a checkpoint complete in itself.
    """

    def __init__(self, layout: dict[str, Any], texts: dict[str, bytes]):
        self.layout, self.texts = layout, texts
        self.saved_step = 0

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        interval = trainer.experiment.checkpoint.interval
        if interval and report.step % interval == 0:
            try:
                self.save(trainer)
            except SaveFailed as error:
                # Training goes on: the older checkpoints are whole, and the next save may find room.
                trainer.folder.event("alert", report.step, reason=str(error))
                if collectives.is_first():
                    print(f"step {report.step}: {error}; training goes on", file=sys.stderr, flush=True)

    def on_end(self, trainer: Trainer) -> None:
        if trainer.progress.step > self.saved_step:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Save now and remove what is too old."""
        start, step = time.perf_counter(), trainer.progress.step
        previous, self.saved_step = self.saved_step, step
        try:
            save(trainer.folder.checkpoints, step, trainer.engine, trainer.state_dict(), self.layout, self.texts)
        except SaveFailed:
            self.saved_step = previous
            raise
        prune(trainer.folder.checkpoints, step, trainer.experiment.checkpoint.keep_last)
        trainer.folder.event("save", step, seconds=time.perf_counter() - start)

    def state_dict(self) -> dict[str, Any]:
        return {"saved_step": self.saved_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.saved_step = state.get("saved_step", 0)
