"""The callback that saves at intervals, at the end, and when a session is stopped."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from pretrain.checkpoint.restore import trusted
from pretrain.checkpoint.save import Saved, Saver
from pretrain.command_line import say
from pretrain.errors import FolderLost, SaveFailed
from pretrain.parallel import collectives
from pretrain.state.keep import Keep
from pretrain.state.reader import Checkpoint, step_folder
from pretrain.state.run_files import ASIDE
from pretrain.state.values import count
from pretrain.training.callback import Callback
from pretrain.training.loop import StepReport, Trainer


class Checkpoints(Callback):
    """Stands last, so that what it saves is complete.

    Args:
        layout: how this session is laid out, for the manifest.
        texts: files that make a checkpoint complete in itself.
    """

    phase = "checkpoint"

    def __init__(self, layout: dict[str, Any], texts: dict[str, bytes]):
        self.layout, self.texts = layout, texts
        self.saved_step = 0
        """Step of the newest save that has not failed so far."""
        self.distrusts = False
        """Whether the state has gone wrong, so that it must not be saved any more."""
        self._saver: Saver | None = None

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        section = trainer.experiment.checkpoint
        due = section.interval and report.step % section.interval == 0
        if due and report.step < trainer.last_step:  # the last state is saved by on_end
            try:
                self._begin(trainer, fresh=False)
                if not section.asynchronous:
                    self._finish(trainer)
            except FolderLost:  # the session ends after this step, and is saved where the folder is now
                pass
            except SaveFailed as error:
                self._alert(trainer, report.step, error)

    def on_end(self, trainer: Trainer) -> None:
        """The session's last state is on the disk when this returns, also after a signal.

        Raises:
            SaveFailed: it could not be written; the older ones are whole.
        """
        self._finish_earlier(trainer)
        if trainer.progress.step > self.saved_step and not self.distrusts:
            self._begin(trainer, fresh=True)
            self._finish(trainer)

    def save_aside(self, trainer: Trainer) -> str:
        """Save the state as it is below RUN/aside, from where no session resumes. Collective.

        Returns:
            Where in the run's folder it is; empty if it could not be written.
        """
        folder, start = trainer.folder.path / ASIDE, time.perf_counter()
        if collectives.is_first():
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier stop
        step, saver = trainer.progress.step, Saver(folder, Keep(1), self.layout, self.texts, lambda saved: None)
        try:
            saver.begin(step, trainer.engine, trainer.state_dict(), start, fresh=True, tensors=trainer.tensors())
            saver.wait()
        except SaveFailed as error:
            self._alert(trainer, step, error, "the state is not kept")
            return ""
        finally:
            saver.close()
        return str(step_folder(Path(ASIDE), step))

    def last_trusted(self, trainer: Trainer, newest: int) -> Checkpoint | None:
        """See `trusted`; a save that is being written is waited for."""
        self._finish_earlier(trainer)
        collectives.on_first(trainer.folder.check, FolderLost)
        return trusted(trainer.folder.checkpoints, newest)

    def on_close(self, trainer: Trainer) -> None:
        """After an exception a save may be running still."""
        if self._saver is None:
            return
        step, problem = self._saver.running, self._saver.close()
        if problem and step is not None:
            self._alert(trainer, step, problem, "its last save failed")

    def _begin(self, trainer: Trainer, fresh: bool) -> None:
        start = time.perf_counter()
        self._finish_earlier(trainer)
        collectives.on_first(trainer.folder.check, FolderLost)
        waited = time.perf_counter() - start
        step, previous = trainer.progress.step, self.saved_step
        self.saved_step = step  # in the state that is saved
        try:
            state, tensors = trainer.state_dict(), trainer.tensors()
            self._saver_of(trainer).begin(step, trainer.engine, state, start, waited, fresh, tensors)
        except SaveFailed:
            self.saved_step = previous
            raise

    def _finish_earlier(self, trainer: Trainer) -> None:
        """Wait for a save that is still being written. If it failed, training goes on: the older ones are whole, and
        the next one may find room."""
        step = self._saver.running if self._saver else None
        try:
            self._finish(trainer)
        except SaveFailed as error:
            self._alert(trainer, step or 0, error)

    def _finish(self, trainer: Trainer) -> None:
        if self._saver is None:
            return
        try:
            self._saver.wait()
        except SaveFailed:
            self.saved_step = 0
            raise

    def _saver_of(self, trainer: Trainer) -> Saver:
        if self._saver is None:
            section = trainer.experiment.checkpoint

            def tell(saved: Saved) -> None:
                seconds = {"stall_seconds": saved.stall_seconds, "wait_seconds": saved.wait_seconds}
                trainer.folder.event("save", saved.step, **seconds, write_seconds=saved.write_seconds)
                if saved.prune_problem:
                    self._alert(trainer, saved.step, saved.prune_problem)

            keep = Keep(section.keep_last, section.keep_every)
            folder = trainer.folder
            self._saver = Saver(folder.checkpoints, keep, self.layout, self.texts, tell, folder.check, folder.complete)
        self._saver.checkpoints = trainer.folder.checkpoints  # the folder may have been moved
        return self._saver

    @staticmethod
    def _alert(trainer: Trainer, step: int, problem: object, then: str = "training goes on") -> None:
        trainer.folder.event("alert", step, reason=str(problem))
        if collectives.is_first():
            say(f"step {step}: {problem}; {then}")

    def state_dict(self) -> dict[str, Any]:
        return {"saved_step": self.saved_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.saved_step = count(state.get("saved_step", 0), "saved_step")
