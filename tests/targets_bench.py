"""Benchmarks on a rank of a test's group, with a rival that may do other work than the engine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain import build
from pretrain.analysis import bench
from pretrain.analysis.bench_plain import PlainLoop, PlainResult
from pretrain.analysis.bench_sides import Options, Work, WorkDiffers
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


def _other_native_weights() -> None:
    from pretrain.analysis import bench_hf

    build_model = bench_hf.native_model

    def native_model(*args: Any) -> Any:
        model = build_model(*args)
        model.get_input_embeddings().weight.data.mul_(1.001)
        return model

    bench_hf.native_model = native_model


def _trainer_without_updates() -> None:
    from pretrain.analysis.bench_hf import TakeTurns

    go_on = TakeTurns._go_on

    def without_rate(self: TakeTurns, control: Any, optimizer: Any) -> None:
        go_on(self, control, optimizer)
        for group in optimizer.param_groups:
            group["lr"] = 0.0

    TakeTurns._go_on = without_rate  # type: ignore[method-assign]


def _other_trainer_gradient() -> None:
    from pretrain.analysis.bench_hf import ObservedTrainer

    training_step = ObservedTrainer.training_step

    def scaled(self: ObservedTrainer, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = training_step(self, model, *args, **kwargs)
        for parameter in model.parameters():
            parameter.grad.mul_(1.01)
        return loss

    ObservedTrainer.training_step = scaled  # type: ignore[method-assign]


TRAINER_SABOTAGES = {
    "weights": _other_native_weights,
    "update": _trainer_without_updates,
    "gradient": _other_trainer_gradient,
}


def measure(rank: int, recipe: str, overrides: list[str], options: Options, sabotage: str | None = None) -> Any:
    """The figures, or what WorkDiffers says."""
    environment = rank_environment(os.environ)
    experiment = load_experiment(recipe, overrides)
    plan = build.plan(experiment, build.Request(), environment, quiet=True)
    train, special = plan.data.train, plan.data.tokenizer.special
    work = Work(plan.experiment, plan.batch, plan.spec, plan.deepspeed, train, plan.tokens_per_sample, special)
    if sabotage and options.against == "hf":
        TRAINER_SABOTAGES[sabotage]()
    elif sabotage:
        PlainLoop.step = SABOTAGES[sabotage]  # type: ignore[method-assign]
    build.use_threads(experiment, environment)
    try:
        return bench.measure(work, environment, Path(experiment.run_dir) / f"rank_{rank}.log", options)
    except WorkDiffers as error:
        return str(error)
