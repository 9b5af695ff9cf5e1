"""Memory of a training process, measured on a rank of a test's group."""

from __future__ import annotations

import os
from pathlib import Path

from pretrain import build
from pretrain.analysis.bench_sides import Work
from pretrain.analysis.plan_check import measured_memory
from pretrain.config.load import load_experiment
from pretrain.launch.environment import rank_environment


def resident(rank: int, recipe: str, overrides: list[str], folder: str) -> tuple[int, int]:
    """(before, peak) bytes."""
    environment = rank_environment(os.environ)
    experiment = load_experiment(recipe, overrides)
    build.use_threads(experiment, environment)
    plan = build.plan(experiment, build.Request(), environment, quiet=True)
    train, special = plan.data.train, plan.data.tokenizer.special
    work = Work(plan.experiment, plan.batch, plan.spec, plan.deepspeed, train, plan.tokens_per_sample, special)
    return tuple(measured_memory(work, environment, Path(folder) / "log", steps=1))  # type: ignore[return-value]
