"""A step as named scalars, for the sinks that show curves: depth profiles by median, worst value and worst layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from pretrain.analysis.figures import badness, worst
from pretrain.monitors.depth import DepthSignals
from pretrain.monitors.metrics import Metrics
from pretrain.monitors.signals import Profiles
from pretrain.training.evaluation import Evaluation
from pretrain.training.loop import StepReport, Trainer

SHOWN = (
    "loss",
    "lr",
    "grad_norm",
    "grad_norm_clipped",
    "tokens_per_second",
    "spike_score",
    "skipped_steps",
    "nonfinite_count",
)
"""Of metrics.jsonl."""


class StepScalars:
    """What a step has for curves.

    Args:
        metrics, evaluation: whose latest figures are shown; stand before the sink.
        depth: the same, of the layers; None: nothing is sampled.
    """

    def __init__(self, metrics: Metrics, evaluation: Evaluation, depth: DepthSignals | None):
        self.metrics, self.evaluation, self.depth = metrics, evaluation, depth

    def of(self, trainer: Trainer, report: StepReport) -> dict[str, float]:
        """Name -> value, of this step alone; what is not known is left out."""
        found: dict[str, Any] = {}
        if report.step % trainer.experiment.monitors.log_interval == 0:
            found |= {name: self.metrics.latest[name] for name in SHOWN}
        if self.evaluation.evaluated_step == report.step:
            found["validation_loss"] = self.evaluation.validation_loss
            found["source_use"] = self.evaluation.source_use
        if self.depth is not None and self.depth.latest[0] == report.step:
            found |= summaries(self.depth.latest[1])
        return {name: value for name, value in found.items() if value is not None}


def summaries(profiles: Profiles) -> dict[str, float]:
    """FIGURE/GROUP/median, /worst and /worst_layer over the layers that have a value; FIGURE/GROUP of a single row.

    Worst is the largest, the smallest or the one farthest from 0, as `analysis.figures` says; so of a layer's heads.
    """
    found: dict[str, float] = {}
    for name, groups in profiles.items():
        for group, rows in groups.items():
            layers = np.array(rows, dtype=np.float64)
            if layers.ndim > 1:
                layers = worst(name, layers)
            known = ~np.isnan(layers)
            if len(layers) == 1 and known.all():
                found[f"{name}/{group}"] = float(layers[0])
            elif known.any():
                found[f"{name}/{group}/median"] = float(np.median(layers[known]))
                at = int(np.nanargmax(badness(name, layers)))
                found[f"{name}/{group}/worst"], found[f"{name}/{group}/worst_layer"] = float(layers[at]), at
    return found
