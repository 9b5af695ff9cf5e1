"""Looks whether run.dir is still the folder that this session writes to; another session may have been put there."""

from __future__ import annotations

import time
from pathlib import Path

from pretrain.command_line import say
from pretrain.errors import FolderLost
from pretrain.parallel import collectives
from pretrain.training.callback import Callback
from pretrain.training.folder_lock import Loss
from pretrain.training.loop import StepReport, Trainer
from pretrain.training.progress import Stop

SECONDS_BETWEEN_LOOKS = 1.0


class FolderWatch(Callback):
    """Stands before what writes. A folder that was moved gets the last state, where it is now, and the session ends."""

    def __init__(self) -> None:
        self._looked = -SECONDS_BETWEEN_LOOKS

    def on_start(self, trainer: Trainer) -> None:
        self._look(trainer)

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        interval = trainer.experiment.checkpoint.interval
        self._look(trainer, saves=interval > 0 and report.step % interval == 0)

    def _look(self, trainer: Trainer, saves: bool = False) -> None:
        now = time.monotonic()
        if saves or now - self._looked >= SECONDS_BETWEEN_LOOKS:
            self._looked = now
            if trainer.folder.loss():
                trainer.request_stop(Stop.FOLDER_LOST)

    def on_end(self, trainer: Trainer) -> None:
        """Collective.

        Raises:
            FolderLost: on every rank, if there is no place to save the last state to.
        """
        loss = trainer.folder.loss() or Loss("", None)
        reason = collectives.share_text(loss.reason)
        if not reason:
            return
        old, place = trainer.folder.path, collectives.share_text(str(loss.place or ""))
        if not place:
            raise FolderLost(
                f"run.dir = {old} {reason}, and nothing more is written to it: what was trained since the last "
                "checkpoint is lost; end the other session, or set another run.dir"
            )
        trainer.folder.follow(Path(place))
        if collectives.is_first():
            say(
                f"run.dir = {old} {reason} while this session trained; it ends at step {trainer.progress.step}, saved "
                f"there: go on with run.dir={place}"
            )
