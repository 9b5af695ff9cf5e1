"""Validation: plain cross-entropy in nats a token, on the same samples every time."""

from __future__ import annotations

from typing import Any

from pretrain.data.loader import Batch, validation_batches
from pretrain.data.samples import Samples
from pretrain.state.run_files import METRICS
from pretrain.state.values import count, maybe, number
from pretrain.training.callback import Callback
from pretrain.training.loop import StepReport, Trainer


class Evaluation(Callback):
    """Evaluates every `evaluation.interval` steps and at the run's last step.

    An encoder-decoder is evaluated twice, the second time with the sources exchanged between the samples. What the
    loss rises by is the source use, in nats a token: near zero means that the decoder ignores its encoder, and the
    model is a language model over its targets, which no loss shows.

    Args:
        samples: unshuffled samples of the validation split.
    """

    phase = "evaluation"

    def __init__(self, samples: Samples):
        self.samples = samples
        self.validation_loss: float | None = None
        self.source_use: float | None = None
        """None where there is no source, or only one sample."""
        self.evaluated_step = 0

    def on_start(self, trainer: Trainer) -> None:
        self.batches = self._batches(trainer)
        objective, count = self.samples.objective, min(trainer.experiment.evaluation.samples, len(self.samples))
        has_source = objective.source_length > 0 and objective.target_length > 0
        self.exchanged = self._batches(trainer, exchange_sources=True) if has_source and count > 1 else []

    def _batches(self, trainer: Trainer, exchange_sources: bool = False) -> list[Batch]:
        engine, experiment = trainer.engine, trainer.experiment
        return validation_batches(
            self.samples,
            experiment.evaluation.samples,
            experiment.batch.micro_batch_size,
            engine.data_parallel_rank,
            engine.data_parallel_size,
            exchange_sources,
        )

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        interval = trainer.experiment.evaluation.interval
        if (interval and report.step % interval == 0) or report.step == trainer.experiment.train.max_steps:
            self.evaluate(trainer, report.step)

    def evaluate(self, trainer: Trainer, step: int) -> float:
        """Evaluate now, log it, and return the loss."""
        total, count = trainer.engine.evaluate(self.batches)
        self.validation_loss, self.evaluated_step = total / count, step
        figures = {"validation_loss": self.validation_loss}
        if self.exchanged:
            exchanged, _ = trainer.engine.evaluate(self.exchanged)
            self.source_use = (exchanged - total) / count
            figures["source_use"] = self.source_use
        trainer.folder.append(METRICS, {"step": step, **figures})
        trainer.folder.event("evaluate", step, **figures, target_tokens=count)
        return self.validation_loss

    def state_dict(self) -> dict[str, Any]:
        return {
            "validation_loss": self.validation_loss,
            "source_use": self.source_use,
            "evaluated_step": self.evaluated_step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.validation_loss = maybe(number, state.get("validation_loss"), "validation_loss")
        self.source_use = maybe(number, state.get("source_use"), "source_use")
        self.evaluated_step = count(state.get("evaluated_step", 0), "evaluated_step")
