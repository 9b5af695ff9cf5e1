"""The progress bar on a terminal, below it the worst verdict; a plain line now and then elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from contextlib import suppress
from typing import Protocol

from tqdm import tqdm

from pretrain.command_line import say
from pretrain.monitors.verdicts import Verdict
from pretrain.training.callback import Callback
from pretrain.training.evaluation import Evaluation
from pretrain.training.loop import StepReport, Trainer

SECONDS_BETWEEN_LINES = 10.0


class Judge(Protocol):
    """Who knows what is wrong with the run."""

    @property
    def worst(self) -> Verdict | None:
        """The worst verdict of the newest sample; None if all is well, or nothing was sampled yet."""


class ProgressBar(Callback):
    """Shows step, losses, source use, tokens/s, the time left, and the worst verdict. Used on rank 0 only.

    Args:
        evaluation: whose last validation loss and source use are shown.
        judge: whose worst verdict is shown; stands before this callback. None if nobody judges.
    """

    def __init__(self, evaluation: Evaluation, judge: Judge | None = None):
        self.evaluation, self.judge = evaluation, judge
        self.bar: tqdm | None = None
        self.below: tqdm | None = None
        self.last_line = 0.0
        self.last_verdict = ""

    def on_start(self, trainer: Trainer) -> None:
        self.first_step, self.start = trainer.progress.step, time.monotonic()
        if sys.stderr.isatty():
            self.bar = tqdm(
                total=trainer.last_step,
                initial=trainer.progress.step,
                unit="step",
                dynamic_ncols=True,
                smoothing=0.1,
                bar_format="step {n_fmt}/{total_fmt} |{bar}| {desc} [{elapsed}<{remaining}]",
            )
            if self.judge is not None:
                self.below = tqdm(total=0, position=1, bar_format="{desc}")

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        text = f"loss {report.result.loss:.4f}"
        if self.evaluation.validation_loss is not None:
            text += f", validation {self.evaluation.validation_loss:.4f}"
        if self.evaluation.source_use is not None:
            text += f", source use {self.evaluation.source_use:z.3f}"
        text += f", {trainer.tokens_per_step / report.step_seconds:,.0f} tokens/s"
        if self.bar is not None:
            with suppress(OSError):  # a terminal that was closed
                self._show_verdict()
                self.bar.set_description_str(text, refresh=False)
                self.bar.update(report.step - self.bar.n)  # a rollback goes back
            return
        now = time.monotonic()
        if now - self.last_line >= SECONDS_BETWEEN_LINES or report.step in (self.first_step + 1, trainer.last_step):
            self.last_line = now
            left = (now - self.start) / max(1, report.step - self.first_step) * (trainer.last_step - report.step)
            line = f"step {report.step}/{trainer.last_step}  {text}, {tqdm.format_interval(left)} left"
            say(line)
            self._print_verdict()

    def _verdict(self) -> str:
        worst = None if self.judge is None else self.judge.worst
        return "" if worst is None else f"{worst.level.name.lower()}: {worst.sentence}"

    def _show_verdict(self) -> None:
        """On the terminal's second line, as far as it goes."""
        if self.below is not None and (verdict := self._verdict()) != self.last_verdict:
            self.last_verdict = verdict
            width = shutil.get_terminal_size().columns - 1
            self.below.set_description_str(verdict if len(verdict) <= width else verdict[: width - 1] + "…")

    def _print_verdict(self) -> None:
        """A line of its own where another signal than before is the worst, or it has become better or worse: a
        figure that wanders would fill the log."""
        worst = None if self.judge is None else self.judge.worst
        what = "" if worst is None else f"{worst.level.name} {worst.signal} {worst.group}"
        if what != self.last_verdict:
            self.last_verdict = what
            say(self._verdict() or "all verdicts are ok again")

    def on_close(self, trainer: Trainer) -> None:
        for bar in (self.bar, self.below):
            if bar is not None:
                with suppress(OSError):
                    bar.close()
