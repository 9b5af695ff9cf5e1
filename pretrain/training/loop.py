"""The loop: batch, step, callbacks, until a reason to stop is agreed on."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from pretrain.config.schema import Experiment
from pretrain.data.loader import BatchLoader
from pretrain.errors import Diverged
from pretrain.models.layers import ModelSpec
from pretrain.parallel import collectives
from pretrain.parallel.engine import Engine, Refusal, StepResult
from pretrain.state.reader import Checkpoint
from pretrain.training.callback import Callback, Remedy
from pretrain.training.progress import Progress, Stop
from pretrain.training.run_folder import RunFolder

SKIPS_IN_A_ROW = 10
"""Batches from which no step could be made after which a run gives up."""


@dataclass(frozen=True)
class StepReport:
    """What callbacks learn of a step."""

    step: int
    result: StepResult
    lr: float
    step_seconds: float
    data_seconds: float
    """Part of step_seconds that was spent waiting for data."""


class Trainer:
    """Runs an experiment on this rank. A context: whatever raises inside it, what is held is released at its end.

    Args:
        experiment: checked and resolved.
        spec: the model's descriptors.
        engine: the model, laid out.
        loader: micro-batches; None on ranks that need none.
        schedule: `factor(step)` multiplies the peak rate.
        tokens_per_sample: source and target positions of one sample.
        folder: the run's folder.
        callbacks: in order; the ones that save come last.
    """

    def __init__(
        self,
        experiment: Experiment,
        spec: ModelSpec,
        engine: Engine,
        loader: BatchLoader,
        schedule: Any,
        tokens_per_sample: int,
        folder: RunFolder,
        callbacks: Sequence[Callback],
    ):
        self.experiment, self.spec, self.engine, self.loader = experiment, spec, engine, loader
        self.schedule, self.tokens_per_sample, self.folder = schedule, tokens_per_sample, folder
        self.callbacks = list(callbacks)
        self.progress = Progress()
        self.rate = 1.0
        """Factor on the schedule's rate, for a policy."""
        self.stop = Stop.NO
        """Why this rank wants to stop; `_agreed_stop` is what all ranks act on."""
        self.doing = "start"
        """data, step, agreement, or the phase of a callback; other threads may read it."""
        self._held = ExitStack()  # unwound from its end
        self._held.callback(self.loader.close)
        for callback in reversed(self.callbacks):
            self._held.callback(self._close, callback)

    @property
    def tokens_per_step(self) -> int:
        """Source and target positions of a global batch, padding included."""
        return self.experiment.batch.global_batch_size * self.tokens_per_sample

    @property
    def last_step(self) -> int:
        """The step after which this session ends."""
        return self.experiment.train.last_step

    def run(self) -> Stop:
        """Train until the end, a signal, or the step to stop at; returns why.

        Raises:
            Diverged: batch after batch was thrown away.
        """
        try:
            self._each("on_start")
            # What is here now stays until the end. Python's cycle collector would walk through all of it now and then
            # in the middle of a step: 0.2 s at 100 layers, which is why only its young part is looked through here.
            gc.collect(1)
            gc.freeze()
            stop = self._agreed_stop()
            while stop == Stop.NO:
                try:
                    self._step(self.progress.step + 1)
                except Remedy as remedy:
                    self._each("on_give_up")
                    self.doing = "checkpoint"
                    remedy.apply(self)
                stop = self._agreed_stop()
            self.stop = stop
            self._each("on_end")
            return stop
        finally:
            gc.unfreeze()
            self.close()

    def close(self) -> None:
        """Release what callbacks and loader hold: threads, files, hooks. Every one is asked, also if another raises."""
        self._held.close()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _close(self, callback: Callback) -> None:
        self.doing = callback.phase
        callback.on_close(self)

    def _step(self, step: int) -> None:
        """One step that counts; batches that give none are skipped on the way."""
        self._each("on_step_begin", step)
        for _ in range(SKIPS_IN_A_ROW):
            start, self.doing = time.perf_counter(), "data"
            batches = self.loader.next() if self.engine.needs_data else self.loader.pass_by()
            data_seconds, self.doing = time.perf_counter() - start, "step"
            lr = self.experiment.optimizer.lr * self.schedule.factor(step) * self.rate
            result = self.engine.train_step(batches, lr)
            seconds = time.perf_counter() - start
            self.progress.seconds += seconds
            if result.refusal is None:
                break
            reason = result.refusal.reason
            self._skip(step, result, result.refusal)
        else:
            raise Diverged(
                f"step {step}: {SKIPS_IN_A_ROW} batches in a row gave no step ({reason}); "
                "lower optimizer.lr, lengthen schedule.warmup_steps, or start from an earlier checkpoint"
            )
        self.progress.step = step
        self.progress.samples += self.experiment.batch.global_batch_size
        self.progress.tokens += self.tokens_per_step
        self.progress.loss = result.loss
        self._each("on_step_end", StepReport(step, result, lr, seconds, data_seconds))

    def _skip(self, step: int, result: StepResult, refusal: Refusal) -> None:
        """Neither step, schedule nor Adam advance; the batch's sample ranges join the data state."""
        ranges = [list(pair) for pair in self.loader.last_ranges]
        self.loader.skip(ranges)
        self.progress.skipped += 1
        self.progress.nonfinite += not result.finite
        figures = {"loss": result.loss, "grad_norm": result.grad_norm, **refusal.figures}
        self.folder.event("skip", step, reason=refusal.reason, **figures, sample_ranges=ranges)
        self._each("on_skip", step, result)
        self._each("on_step_begin", step)

    def request_stop(self, reason: Stop) -> None:
        """Ask for the end after the current step; safe in a signal handler and from a thread."""
        self.stop = max(self.stop, reason)
        self.folder.ending()

    def _agreed_stop(self) -> Stop:
        done, self.doing = self.progress.step, "agreement"
        if done >= self.experiment.train.max_steps:
            self.request_stop(Stop.MAX_STEPS)
        elif done >= self.last_step:
            self.request_stop(Stop.STOP_AT_STEP)
        agreed = Stop(int(collectives.max_over(torch.tensor([int(self.stop)])).item()))
        if agreed != Stop.NO:
            self.folder.ending()
        return agreed

    def _each(self, hook: str, *args: Any) -> None:
        for callback in self.callbacks:
            self.doing = callback.phase
            getattr(callback, hook)(self, *args)

    def state_dict(self) -> dict[str, Any]:
        """All that a checkpoint keeps beside weights and moments, as JSON."""
        return {
            "progress": self.progress.state_dict(),
            "data": self.loader.state_dict(),
            "optimizer_steps": self.engine.optimizer_step_count(),
            "loss_scaler": self.engine.loss_scaler_state(),
            "logs": self.folder.state_dict(),
            "callbacks": {type(callback).__name__: callback.state_dict() for callback in self.callbacks},
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """What callbacks give a checkpoint beside that."""
        return {name: tensor for callback in self.callbacks for name, tensor in callback.tensors().items()}

    def resumed(self, checkpoint: Checkpoint, within_session: bool) -> None:
        """Tell the callbacks that this checkpoint's state is in place."""
        self._each("on_rollback" if within_session else "on_resume", checkpoint)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.progress.load_state_dict(state["progress"])
        self.loader.load_state_dict(state["data"])
        self.engine.set_optimizer_step_count(state["optimizer_steps"])
        self.engine.load_loss_scaler_state(state.get("loss_scaler", {}))  # not there in older checkpoints
        self.folder.load_state_dict(state.get("logs"))
        for callback in self.callbacks:
            callback.load_state_dict(state["callbacks"].get(type(callback).__name__, {}))
