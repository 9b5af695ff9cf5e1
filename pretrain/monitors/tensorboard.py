"""Scalars for TensorBoard below RUN/tensorboard."""

from __future__ import annotations

import io
import os
import time
from typing import TYPE_CHECKING, Any

from pretrain.monitors.summaries import StepScalars
from pretrain.state.run_files import TENSORBOARD
from pretrain.training.callback import Callback
from pretrain.training.loop import StepReport, Trainer

if TYPE_CHECKING:
    from pretrain.state.reader import Checkpoint

VERSION = "brain.Event:2"


class TensorBoard(Callback):
    """Mirrors metrics.jsonl, and layers.jsonl in summary. Used on rank 0 only.

    The records go the way of the other logs: TensorBoard's own writer has a thread whose failure (a full disk) ends in
    a trace, or in waiting for ever.

    Args:
        scalars: of each step.
    """

    def __init__(self, scalars: StepScalars):
        self.scalars = scalars
        self.name = ""
        """Of the events file, in the run's folder."""
        self._files = 0

    def on_start(self, trainer: Trainer) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog  # imports slowly

        self._files += 1
        stamp = f"{time.time():.0f}.{os.uname().nodename}.{os.getpid()}.{self._files}"
        self.name = f"{TENSORBOARD}/events.out.tfevents.{stamp}"
        self._add(trainer, file_version=VERSION)
        # Purge what an earlier session logged beyond the checkpoint that this one resumes from.
        self._add(trainer, step=trainer.progress.step + 1, session_log=SessionLog(status=SessionLog.START))

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=name, simple_value=value) for name, value in self.scalars.of(trainer, report).items()
        ]
        if values:
            self._add(trainer, step=report.step, summary=Summary(value=values))

    def on_rollback(self, trainer: Trainer, checkpoint: Checkpoint) -> None:
        self.on_start(trainer)

    def _add(self, trainer: Trainer, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **fields).SerializeToString())
        trainer.folder.append_bytes(self.name, record.getvalue())
