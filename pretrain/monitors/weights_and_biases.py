"""Scalars for Weights & Biases, through its own client; files below RUN/wandb."""

from __future__ import annotations

from typing import Any

from pretrain.monitors.summaries import StepScalars
from pretrain.state.values import maybe, text
from pretrain.training.callback import Callback
from pretrain.training.loop import StepReport, Trainer


class WeightsAndBiases(Callback):
    """The same scalars as TensorBoard's. Used on rank 0 only; a resumed session goes on in the same W&B run.

    Where and how is the client's business: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline. If it cannot begin
    (nobody is logged in) or go on, training does without it.

    Args:
        scalars: of each step.
    """

    def __init__(self, scalars: StepScalars):
        self.scalars = scalars
        self.id: str | None = None
        self.run: Any = None

    def on_start(self, trainer: Trainer) -> None:
        try:
            import wandb

            self.run = wandb.init(
                name=trainer.experiment.name,
                id=self.id,
                resume="allow",
                dir=str(trainer.folder.path),
                config=trainer.experiment.model_dump(mode="json"),
                settings=wandb.Settings(silent=True, console="off"),  # the terminal is the progress bar's
            )
            self.id = self.run.id
            # Not the client's own step: steps that a resumed session does again would be refused.
            self.run.define_metric("step")
            self.run.define_metric("*", step_metric="step")
        except Exception as error:  # whatever it is, no reason to end a training
            self._give_up(trainer, error)

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        if self.run is not None and (scalars := self.scalars.of(trainer, report)):
            try:
                self.run.log({"step": report.step, **scalars})
            except Exception as error:  # a full disk, a service that has ended
                self._give_up(trainer, error)

    def on_close(self, trainer: Trainer) -> None:
        if self.run is not None:
            try:
                self.run.finish()
            except Exception as error:
                self._give_up(trainer, error)

    def _give_up(self, trainer: Trainer, error: Exception) -> None:
        """Say it once and be silent from now on."""
        self.run = None
        why = " ".join(str(error).split()).rstrip(".")
        trainer.folder.alert(trainer.progress.step, f"monitors.wandb: {why}; training goes on without it")

    def state_dict(self) -> dict[str, Any]:
        return {"id": self.id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.id = maybe(text, state.get("id"), "id")
