"""The progress bar on a terminal; a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from pretrain.training.callback import Callback
from pretrain.training.evaluation import Evaluation
from pretrain.training.loop import StepReport, Trainer

SECONDS_BETWEEN_LINES = 10.0


class ProgressBar(Callback):
    """Shows step, loss, validation loss, tokens/s and the time left. Used on rank 0 only.

    Args:
        evaluation: whose last validation loss is shown.
    """

    def __init__(self, evaluation: Evaluation):
        self.evaluation = evaluation
        self.bar: tqdm | None = None
        self.last_line = 0.0

    def on_start(self, trainer: Trainer) -> None:
        self.first_step, self.start = trainer.progress.step, time.monotonic()
        if sys.stderr.isatty():
            self.bar = tqdm(
                total=trainer.last_step,
                initial=trainer.progress.step,
                unit="step",
                dynamic_ncols=True,
                smoothing=0.1,
                bar_format="step {n_fmt}/{total_fmt} |{bar}| {postfix} [{elapsed}<{remaining}]",
            )

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        text = f"loss {report.result.loss:.4f}"
        if self.evaluation.validation_loss is not None:
            text += f", validation {self.evaluation.validation_loss:.4f}"
        text += f", {trainer.tokens_per_step / report.step_seconds:,.0f} tokens/s"
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update()
            return
        now = time.monotonic()
        if now - self.last_line >= SECONDS_BETWEEN_LINES or report.step in (self.first_step + 1, trainer.last_step):
            self.last_line = now
            left = (now - self.start) / (report.step - self.first_step) * (trainer.last_step - report.step)
            line = f"step {report.step}/{trainer.last_step}  {text}, {tqdm.format_interval(left)} left"
            print(line, file=sys.stderr, flush=True)

    def on_close(self, trainer: Trainer) -> None:
        if self.bar is not None:
            self.bar.close()
