"""Scalars for TensorBoard below RUN/tensorboard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pretrain.monitors.summaries import StepScalars
from pretrain.training.callback import Callback
from pretrain.training.loop import StepReport, Trainer

if TYPE_CHECKING:
    from pretrain.state.reader import Checkpoint


class TensorBoard(Callback):
    """Mirrors metrics.jsonl, and layers.jsonl in summary. Used on rank 0 only.

    Args:
        scalars: of each step.
    """

    def __init__(self, scalars: StepScalars):
        self.scalars = scalars
        self.writer: Any = None

    def on_start(self, trainer: Trainer) -> None:
        from torch.utils.tensorboard import SummaryWriter  # imports slowly

        # Purge what an earlier session logged beyond the checkpoint that this one resumes from.
        self.writer = SummaryWriter(str(trainer.folder.path / "tensorboard"), purge_step=trainer.progress.step + 1)

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        for name, value in self.scalars.of(trainer, report).items():
            self.writer.add_scalar(name, value, report.step)

    def on_rollback(self, trainer: Trainer, checkpoint: Checkpoint) -> None:
        self.on_close(trainer)
        self.on_start(trainer)

    def on_close(self, trainer: Trainer) -> None:
        if self.writer is not None:
            self.writer.close()
