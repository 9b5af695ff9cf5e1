"""What can hang on the loop. Everything but the step itself is a callback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretrain.state.reader import Checkpoint
    from pretrain.training.loop import StepReport, Trainer


class Callback:
    """Hooks of the loop, called on every rank, in the order in which the callbacks stand in the list.

    A callback that keeps something over sessions gives it as JSON through `state_dict`, under its class name.
    """

    phase = "callbacks"
    """What the loop does meanwhile, as `Trainer.doing` says it."""

    def on_resume(self, trainer: Trainer, checkpoint: Checkpoint) -> None:
        """When a checkpoint's state is in place, before the logs beyond it are cut off."""

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step of a session; a resumed state is already in place."""

    def on_step_begin(self, trainer: Trainer, step: int) -> None:
        """Before step `step` (counted from 1), and again before each further try after one that was thrown away."""

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        """After a step that was done (a skipped one is not reported)."""

    def on_end(self, trainer: Trainer) -> None:
        """After the last step of a session, whatever ended it but an exception."""

    def on_close(self, trainer: Trainer) -> None:
        """Always, also after an exception: release what is held."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
