"""Scalars for TensorBoard below RUN/tensorboard."""

from __future__ import annotations

from typing import Any

from pretrain.monitors.metrics import Metrics
from pretrain.training.callback import Callback
from pretrain.training.evaluation import Evaluation
from pretrain.training.loop import StepReport, Trainer

SHOWN = ("loss", "lr", "grad_norm", "grad_norm_clipped", "tokens_per_second")


class TensorBoard(Callback):
    """Mirrors metrics.jsonl. Used on rank 0 only.

    Args:
        metrics: whose latest figures are written; stands before this callback.
        evaluation: whose losses are written; stands before this callback.
    """

    def __init__(self, metrics: Metrics, evaluation: Evaluation):
        self.metrics, self.evaluation = metrics, evaluation
        self.writer: Any = None

    def on_start(self, trainer: Trainer) -> None:
        from torch.utils.tensorboard import SummaryWriter  # imports slowly

        # Purge what an earlier session logged beyond the checkpoint that this one resumes from.
        self.writer = SummaryWriter(str(trainer.folder.path / "tensorboard"), purge_step=trainer.progress.step + 1)

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        if report.step % trainer.experiment.monitors.log_interval == 0:
            for name in SHOWN:
                self.writer.add_scalar(name, self.metrics.latest[name], report.step)
        if self.evaluation.evaluated_step == report.step:
            self.writer.add_scalar("validation_loss", self.evaluation.validation_loss, report.step)

    def on_close(self, trainer: Trainer) -> None:
        if self.writer is not None:
            self.writer.close()
