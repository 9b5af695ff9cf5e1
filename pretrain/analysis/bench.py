"""Time an experiment's optimizer step through the engine against the plain PyTorch loop, step by step in turns.

Both train on the same batches from the same weights and must report the same losses, so that what is timed is the
same work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm import tqdm

from pretrain.analysis.bench_clock import RankClock
from pretrain.analysis.bench_machine import busy_seconds, peak_resident_bytes
from pretrain.analysis.bench_plain import PlainLoop
from pretrain.analysis.bench_statistics import paired_ratio
from pretrain.analysis.plan import total_parameters
from pretrain.config.checks import BatchPlan
from pretrain.config.schema import Experiment
from pretrain.data.loader import Batch, BatchLoader
from pretrain.data.samples import Samples
from pretrain.launch.environment import RankEnvironment
from pretrain.models.layers import ModelSpec
from pretrain.parallel import collectives, process_group
from pretrain.parallel.build import build_engine
from pretrain.schedules.registry import SCHEDULES

Step = Callable[[Sequence[Batch], float], tuple[float, float, float]]
"""(micro-batches, learning rate) -> (loss, gradient norm before clipping, seconds), equal on every rank."""

TOLERANCES = {"fp32": {"loss": 1e-5, "gradient norm": 1e-3}, "bf16": {"loss": 2e-2, "gradient norm": 0.2}}
"""Relative differences up to which both are taken to have done the same. A gradient norm feels the rounding of the
steps before it sooner than a loss (3e-5 after 12 steps of 1000 layers). In bf16 the engine holds bf16 weights and the
plain loop autocasts fp32 ones, so they round differently from the first step on."""


class WorkDiffers(Exception):
    """The engine and the plain loop did not compute the same, so their times say nothing about each other."""


@dataclass(frozen=True)
class Work:
    """A checked experiment, as `build.plan` makes it."""

    experiment: Experiment
    batch: BatchPlan
    spec: ModelSpec
    deepspeed: dict[str, Any]
    train: Samples
    tokens_per_sample: int


@dataclass(frozen=True)
class Options:
    """How to measure."""

    repeats: int = 9
    """Pairs that count."""
    warmup: int = 2
    """Steps of each side before them, at least 1."""
    optimizer: str = "default"
    """The plain loop's AdamW, a key of bench_plain.ADAMW."""


@dataclass
class Side:
    """The engine or the plain loop, what it trains on, and what was seen of it step by step, warm-up included."""

    step: Step
    batches: list[list[Batch]]
    start_up_seconds: float
    """Building and initialising it."""
    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def take(self, lr: float) -> None:
        """The next step."""
        loss, grad_norm, seconds = self.step(self.batches[len(self.seconds)], lr)
        self.losses.append(loss)
        self.grad_norms.append(grad_norm)
        self.seconds.append(seconds)

    def figures(self, warmup: int, tokens: int) -> dict[str, Any]:
        timed = self.seconds[warmup:]
        return {
            "start_up_seconds": self.start_up_seconds,
            "first_step_seconds": self.seconds[0],
            "step_seconds": timed,
            "median_step_seconds": median(timed),
            "tokens_per_second": tokens / median(timed),
        }


def measure(work: Work, environment: RankEnvironment, log: Path, options: Options) -> dict[str, Any]:
    """Run on every rank, in a process that has no group yet; all ranks return the same figures.

    Args:
        work: the same on every rank.
        environment: this rank's place; its threads are torch's at the call.
        log: takes what DeepSpeed says.
        options: the same on every rank.

    Raises:
        WorkDiffers: on every rank, as soon as a step's loss or gradient norm differs.
    """
    process_group.start(environment, log)
    try:
        return Measurement(work, log, options).run()
    finally:
        process_group.end()


class Measurement:
    """One rank's part of a measurement, within its process group."""

    def __init__(self, work: Work, log: Path, options: Options):
        self.work, self.log, self.options = work, log, options
        self.resident_before = peak_resident_bytes()
        self.clock = RankClock(torch.get_num_threads())
        experiment, steps = work.experiment, range(1, options.warmup + options.repeats + 1)
        schedule = SCHEDULES.build(experiment.schedule, experiment.train.max_steps)
        self.rates = [experiment.optimizer.lr * schedule.factor(min(k, experiment.train.max_steps)) for k in steps]

    def run(self) -> dict[str, Any]:
        """Engine alone first, for its peak memory; then both warm; then in turns."""
        warm, timed = self.rates[: self.options.warmup], self.rates[self.options.warmup :]
        with tqdm(total=2 * len(self.rates), unit="step", disable=None if collectives.is_first() else True) as bar:
            engine = self._engine()
            for lr in warm:
                engine.take(lr)
                bar.update()
            memory = collectives.gather_rows(torch.tensor([peak_resident_bytes(), self.resident_before]))
            plain = self._plain()
            for lr in warm:
                plain.take(lr)
                self._compare(engine, plain)
                bar.update()
            before = self._clocks()
            for pair, lr in enumerate(timed):
                # Who goes first changes, so that neither always finds what the other leaves behind.
                for side in (engine, plain) if pair % 2 else (plain, engine):
                    side.take(lr)
                    bar.update()
                self._compare(engine, plain)
            wall, own, busy = (b - a for a, b in zip(before, self._clocks(), strict=True))
        return self._setting() | {
            "engine": engine.figures(self.options.warmup, self._tokens)
            | {"peak_resident_bytes": memory[:, 0].tolist(), "resident_bytes_before": memory[:, 1].tolist()},
            "plain": plain.figures(self.options.warmup, self._tokens),
            "ratio": asdict(paired_ratio(engine.seconds[-len(timed) :], plain.seconds[-len(timed) :])),
            "largest_loss_difference": largest_difference(engine.losses, plain.losses),
            "largest_grad_norm_difference": largest_difference(engine.grad_norms, plain.grad_norms),
            "waiting_cpu_shares": self.clock.waiting_cpu_shares(),
            "others_cores": max(0.0, (busy - own) / wall) if busy else None,
        }

    @property
    def _tokens(self) -> int:
        return self.work.experiment.batch.global_batch_size * self.work.tokens_per_sample

    def _setting(self) -> dict[str, Any]:
        experiment, threads = self.work.experiment, self.clock.threads
        return {
            "recipe": experiment.name,
            "layers": sum(".layers." in layer.name for layer in self.work.spec.layers),
            "parameters": total_parameters(self.work.spec),
            "precision": experiment.train.precision,
            "zero_stage": experiment.parallel.zero_stage,
            **asdict(self.work.batch),
            "global_batch_size": experiment.batch.global_batch_size,
            "micro_batch_size": experiment.batch.micro_batch_size,
            "tokens_per_step": self._tokens,
            "threads": {"each_process": threads, "plain_loop": threads * self.work.batch.world_size},
            "plain_adamw": self.options.optimizer,
        }

    def _engine(self) -> Side:
        with process_group.quiet(self.log):
            engine, seconds = self.clock.together(
                lambda: build_engine(self.work.experiment, self.work.spec, self.work.deepspeed)
            )

        def step(batches: Sequence[Batch], lr: float) -> tuple[float, float, float]:
            own = batches if engine.needs_data else []
            result, seconds = self.clock.together(lambda: engine.train_step(own, lr))
            return result.loss, result.grad_norm, seconds

        return Side(step, self._batches(engine.data_parallel_rank, engine.data_parallel_size), seconds)

    def _plain(self) -> Side:
        """Only rank 0 holds the plain loop; its figures are shared."""
        plain, seconds = self.clock.alone(
            lambda: PlainLoop(self.work.experiment, self.work.spec, self.clock.device, self.options.optimizer)
        )

        def step(batches: Sequence[Batch], lr: float) -> tuple[float, float, float]:
            result, seconds = self.clock.alone(lambda: plain.step(batches, lr) if plain else None)
            own = [result.loss, result.grad_norm] if result else [0.0, 0.0]
            loss, grad_norm = collectives.sum_over(torch.tensor(own, dtype=torch.float64)).tolist()
            return loss, grad_norm, seconds

        return Side(step, self._batches(0, 1), seconds)

    def _batches(self, rank: int, size: int) -> list[list[Batch]]:
        """The micro-batches of every step, made beforehand: reading data is timed on neither side."""
        experiment = self.work.experiment
        sizes = experiment.batch.global_batch_size, experiment.batch.micro_batch_size
        loader = BatchLoader(self.work.train, experiment.train.seed, *sizes, rank, size)
        try:
            return [loader.next() for _ in self.rates]
        finally:
            loader.close()

    def _clocks(self) -> tuple[float, float, float]:
        """Seconds: of the wall clock, of CPU used by all ranks, of CPU used on the machine (0 where not told)."""
        wall, busy = (time.perf_counter(), busy_seconds() or 0.0) if collectives.is_first() else (0.0, 0.0)
        seconds = torch.tensor([wall, time.process_time(), busy], dtype=torch.float64)
        wall, own, busy = collectives.sum_over(seconds).tolist()
        return wall, own, busy

    def _compare(self, engine: Side, plain: Side) -> None:
        """Both sides' figures of the plain loop's last step."""
        step = len(plain.losses) - 1
        message = ""
        for name, tolerance in TOLERANCES[self.work.experiment.train.precision].items():
            seen = [side.losses if name == "loss" else side.grad_norms for side in (engine, plain)]
            ours, theirs = (figures[step] for figures in seen)
            if not message and not abs(ours - theirs) <= tolerance * abs(theirs):  # also where one is not a number
                message = f"step {step + 1}: {name} {ours:.9g} of the engine, {theirs:.9g} of the plain loop"
        message = collectives.share_text(message)  # all ranks go on, or none
        if message:
            raise WorkDiffers(f"{message}: not the same work, so no times are given")


def largest_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Largest relative difference of two lists of equal length, none of `theirs` zero."""
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
