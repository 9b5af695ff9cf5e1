"""Validation: plain cross-entropy in nats a token, on the same samples every time."""

from __future__ import annotations

from typing import Any

from pretrain.data.loader import validation_batches
from pretrain.data.samples import Samples
from pretrain.state.run_files import METRICS
from pretrain.state.values import count, maybe, number
from pretrain.training.callback import Callback
from pretrain.training.loop import StepReport, Trainer


class Evaluation(Callback):
    """Evaluates every `evaluation.interval` steps and at the run's last step."""

    phase = "evaluation"

    def __init__(self, samples: Samples):
        self.samples = samples
        self.validation_loss: float | None = None
        self.evaluated_step = 0

    def on_start(self, trainer: Trainer) -> None:
        engine, experiment = trainer.engine, trainer.experiment
        self.batches = validation_batches(
            self.samples,
            experiment.evaluation.samples,
            experiment.batch.micro_batch_size,
            engine.data_parallel_rank,
            engine.data_parallel_size,
        )

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        interval = trainer.experiment.evaluation.interval
        if (interval and report.step % interval == 0) or report.step == trainer.experiment.train.max_steps:
            self.evaluate(trainer, report.step)

    def evaluate(self, trainer: Trainer, step: int) -> float:
        """Evaluate now, log it, and return the loss."""
        total, count = trainer.engine.evaluate(self.batches)
        self.validation_loss, self.evaluated_step = total / count, step
        trainer.folder.append(METRICS, {"step": step, "validation_loss": self.validation_loss})
        trainer.folder.event("evaluate", step, validation_loss=self.validation_loss, target_tokens=count)
        return self.validation_loss

    def state_dict(self) -> dict[str, Any]:
        return {"validation_loss": self.validation_loss, "evaluated_step": self.evaluated_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.validation_loss = maybe(number, state.get("validation_loss"), "validation_loss")
        self.evaluated_step = count(state.get("evaluated_step", 0), "evaluated_step")
