"""metrics.jsonl: one object a logged step; summary.json at the end."""

from __future__ import annotations

import statistics
from collections import deque
from typing import Any

from tqdm import tqdm

from pretrain.monitors.spike_score import SpikeScore
from pretrain.state.run_files import METRICS
from pretrain.state.values import mapping
from pretrain.training.callback import Callback
from pretrain.training.evaluation import Evaluation
from pretrain.training.loop import StepReport, Trainer


class Metrics(Callback):
    """Writes the step's figures; `latest` is what other sinks show.

    Args:
        spike_window: losses that the spike score looks back on.
    """

    def __init__(self, spike_window: int) -> None:
        self.latest: dict[str, Any] = {}
        self.spike_score = SpikeScore(spike_window)
        self._told = False

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        progress, result = trainer.progress, report.result
        self.latest = {
            "step": report.step,
            "tokens": progress.tokens,
            "samples": progress.samples,
            "sample_ranges": [list(pair) for pair in trainer.loader.last_ranges],
            "loss": result.loss,
            "spike_score": self.spike_score.score(result.loss),
            "lr": report.lr,
            "grad_norm": result.grad_norm,
            "grad_norm_clipped": result.grad_norm_clipped,
            "tokens_per_second": trainer.tokens_per_step / report.step_seconds,
            "mfu": None,  # the peak of the device is not stated
            "step_seconds": report.step_seconds,
            "data_seconds": report.data_seconds,
            "skipped_steps": progress.skipped,
            "nonfinite_count": progress.nonfinite,
        }
        self.spike_score.add(result.loss)
        if not result.target_tokens and not self._told and trainer.folder.writes:
            self._told = True
            trainer.folder.alert(report.step, f"step {report.step} had no token to predict in its batch: its loss is 0")
        if report.step % trainer.experiment.monitors.log_interval == 0:
            trainer.folder.append(METRICS, self.latest)

    def state_dict(self) -> dict[str, Any]:
        return {"spike_score": self.spike_score.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.spike_score.load_state_dict(mapping(state.get("spike_score", {}), "spike_score"))


def summary_line(figures: dict[str, Any]) -> str:
    """The result of a run in one line: validation loss beside what frequencies alone would reach."""
    known = {name: value for name, value in figures.items() if isinstance(value, (int, float))}
    parts = [f"step {known['step']}"] if "step" in known else []
    if {"step", "max_steps", "seconds"} <= known.keys():
        parts = [f"{known['step']} of {known['max_steps']} steps in {tqdm.format_interval(known['seconds'])}"]
    if known.get("tokens_per_second"):
        parts.append(f"{known['tokens_per_second']:,.0f} tokens/s")
    loss, entropy = known.get("validation_loss"), known.get("unigram_entropy")
    if loss is not None and entropy is not None:
        side = "below" if loss < entropy else "not below"
        parts.append(f"validation loss {loss:.3f}, {side} the unigram entropy {entropy:.3f} of the same targets")
    if (use := known.get("source_use")) is not None:
        parts.append(f"source use {use:z.3f}")
    return ", ".join(parts)


class Summary(Callback):
    """The final figures in summary.json.

    Args:
        evaluation: whose last validation loss is reported.
        unigram_entropy: of the validation targets, in nats.
        parameters: of the whole model.
    """

    def __init__(self, evaluation: Evaluation, unigram_entropy: float, parameters: int):
        self.evaluation, self.unigram_entropy, self.parameters = evaluation, unigram_entropy, parameters
        self.rates: deque[float] = deque(maxlen=1000)

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        self.rates.append(trainer.tokens_per_step / report.step_seconds)

    def on_end(self, trainer: Trainer) -> None:
        figures: dict[str, Any] = {
            "step": trainer.progress.step,
            "max_steps": trainer.experiment.train.max_steps,
            "loss": trainer.progress.loss,
            "validation_loss": self.evaluation.validation_loss,
            "validation_step": self.evaluation.evaluated_step,
            "source_use": self.evaluation.source_use,
            "unigram_entropy": self.unigram_entropy,
            "parameters": self.parameters,
            "seconds": trainer.progress.seconds,
            "skipped_steps": trainer.progress.skipped,
        }
        if self.rates:
            figures["tokens_per_second"] = statistics.median(self.rates)
        trainer.folder.update_summary(figures)
