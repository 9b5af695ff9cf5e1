"""What can hang on the loop. Everything but the step itself is a callback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from pretrain.parallel.engine import StepResult
    from pretrain.state.reader import Checkpoint
    from pretrain.training.loop import StepReport, Trainer


class Remedy(Exception):
    """Raised in `on_skip` or `on_step_end`, on every rank: `apply` runs instead of what is left of the step."""

    def __init__(self, apply: Callable[[Trainer], None]):
        self.apply = apply


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

    def on_skip(self, trainer: Trainer, step: int, result: StepResult) -> None:
        """After a try of step `step` that was thrown away, and before the next one."""

    def on_give_up(self, trainer: Trainer) -> None:
        """A remedy follows: what was begun in `on_step_begin` gets no `on_step_end`."""

    def on_rollback(self, trainer: Trainer, checkpoint: Checkpoint) -> None:
        """When an earlier checkpoint's state has been put back within a session; as after a resume, if nothing else."""
        self.on_resume(trainer, checkpoint)

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        """After a step that was done (a skipped one is not reported)."""

    def on_end(self, trainer: Trainer) -> None:
        """After the last step of a session, whatever ended it but an exception."""

    def on_close(self, trainer: Trainer) -> None:
        """Always, also after an exception, and without `on_start` where the session did not get so far: release what
        is held. Not collective: another rank may be gone."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def tensors(self) -> dict[str, Tensor]:
        """What is kept over sessions and too large for JSON: flat fp32 CPU tensors that nobody changes afterwards.

        Rank 0's are saved; in `on_resume` every rank finds them by `checkpoint.rank_tensor(0, name)`.
        """
        return {}
