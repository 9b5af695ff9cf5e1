"""Benchmarks on a rank of a test's group, with a plain loop that may do other work than the engine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain import build
from pretrain.analysis import bench
from pretrain.analysis.bench_plain import PlainLoop, PlainResult
from pretrain.config.load import load_experiment
from pretrain.launch.environment import rank_environment


def _other_weights(self: PlainLoop, batches: Sequence[Any], lr: float) -> PlainResult:
    self.layers.token_embedding.weight.data.mul_(1.0001)  # type: ignore[operator, union-attr]
    return STEP(self, batches, lr)


def _one_micro_batch_less(self: PlainLoop, batches: Sequence[Any], lr: float) -> PlainResult:
    return STEP(self, batches[:-1], lr)


def _no_update(self: PlainLoop, batches: Sequence[Any], lr: float) -> PlainResult:
    return STEP(self, batches, 0.0)


def _other_gradient(self: PlainLoop, batches: Sequence[Any], lr: float) -> PlainResult:
    for parameter in self.layers.parameters():
        handle = parameter.register_hook(lambda gradient: gradient * 1.01)
        self.__dict__.setdefault("handles", []).append(handle)
    return STEP(self, batches, lr)


STEP = PlainLoop.step
SABOTAGES = {
    "weights": _other_weights,
    "micro_batch": _one_micro_batch_less,
    "update": _no_update,
    "gradient": _other_gradient,
}


def measure(rank: int, recipe: str, overrides: list[str], options: bench.Options, sabotage: str | None = None) -> Any:
    """The figures, or what WorkDiffers says."""
    environment = rank_environment(os.environ)
    experiment = load_experiment(recipe, overrides)
    plan = build.plan(experiment, build.Request(), environment, quiet=True)
    data = plan.data
    work = bench.Work(
        plan.experiment,
        plan.batch,
        plan.spec,
        plan.deepspeed,
        data.train,
        plan.tokens_per_sample,
        data.tokenizer.special,
    )
    if sabotage in SABOTAGES:
        PlainLoop.step = SABOTAGES[sabotage]  # type: ignore[method-assign]
    build.use_threads(experiment, environment)
    try:
        return bench.measure(work, environment, Path(experiment.run_dir) / f"rank_{rank}.log", options)
    except bench.WorkDiffers as error:
        return str(error)
