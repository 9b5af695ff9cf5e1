"""Time an experiment's optimizer step through the engine against a rival, step by step in turns.

The rival is the loop that a PyTorch user would write (`bench_plain`) or the Hugging Face Trainer (`bench_hf`). Both
sides train on the same batches from the same weights and must report the same losses, so that what is timed is the
same work.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pretrain.analysis.bench_clock import RankClock
from pretrain.analysis.bench_machine import busy_seconds, peak_resident_bytes
from pretrain.analysis.bench_pipeline import InstructionTimes
from pretrain.analysis.bench_sides import (
    GRAD_NORM,
    LOSS,
    Options,
    Rival,
    Seen,
    Turns,
    Work,
    WorkDiffers,
    difference,
    largest_difference,
)
from pretrain.analysis.bench_statistics import paired_ratio
from pretrain.analysis.plan_model import tokens_per_step, total_parameters
from pretrain.data.loader import Batch, BatchLoader
from pretrain.launch.environment import RankEnvironment
from pretrain.parallel import collectives, process_group
from pretrain.parallel.build import build_engine
from pretrain.parallel.engine import Engine
from pretrain.schedules.registry import SCHEDULES


def rival_type(name: str) -> type[Rival]:
    """The class behind `Options.against`; transformers is imported only where it is needed."""
    if name == "hf":
        from pretrain.analysis.bench_hf import TrainerRival

        return TrainerRival
    from pretrain.analysis.bench_plain import PlainRival

    return PlainRival


def measure(work: Work, environment: RankEnvironment, log: Path, options: Options) -> dict[str, Any]:
    """Run on every rank, in a process that has no group yet; all ranks return the same figures.

    Args:
        work: the same on every rank.
        environment: this rank's place; its threads are torch's at the call.
        log: takes what libraries say.
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
        self.clock = RankClock(torch.get_num_threads(), options.rival_threads)
        self.rival = rival_type(options.against)(work, self.clock, log, options)
        experiment, steps = work.experiment, range(1, options.warmup + options.repeats + 1)
        schedule = SCHEDULES.build(experiment.schedule, experiment.train.max_steps)
        last = experiment.train.max_steps
        self.rates = self.rival.rates([experiment.optimizer.lr * schedule.factor(min(k, last)) for k in steps])
        self.clocks_before = (0.0, 0.0, 0.0)
        self.instructions: InstructionTimes | None = None

    def run(self) -> dict[str, Any]:
        """Engine alone first, for its peak memory; then both warm; then in turns."""
        warmup, hidden = self.options.warmup, None if collectives.is_first() else True
        with (
            tqdm(total=2 * len(self.rates), desc=self.work.experiment.name, unit="step", disable=hidden) as bar,
            process_group.quiet(self.log),
        ):
            engine, start_up = self.clock.together(
                lambda: build_engine(self.work.experiment, self.work.spec, self.work.deepspeed)
            )
            if engine.num_stages > 1:
                self.instructions = InstructionTimes(engine)
            turns = self._turns(engine, bar)
            turns.engine.start_up_seconds = start_up.seconds
            turns.reach_rival()
            memory = collectives.gather_rows(torch.tensor([peak_resident_bytes(), self.resident_before]))
            self.rival.run(turns)
            wall, own, busy = (b - a for a, b in zip(self.clocks_before, self._clocks(), strict=True))
        compared = self.rival.comparable
        return self._setting() | {
            "engine": turns.engine.figures(warmup, self._tokens)
            | {"peak_resident_bytes": memory[:, 0].tolist(), "resident_bytes_before": memory[:, 1].tolist()},
            "rival": turns.rival.figures(warmup, self._tokens) | self.rival.facts(),
            "ratio": asdict(paired_ratio(turns.engine.seconds(warmup), turns.rival.seconds(warmup))),
            "cpu_ratio": asdict(paired_ratio(turns.engine.cpu_seconds(warmup), turns.rival.cpu_seconds(warmup))),
            "largest_loss_difference": largest_difference(turns, LOSS),
            "largest_grad_norm_difference": largest_difference(turns, GRAD_NORM) if GRAD_NORM in compared else None,
            "pipeline_seconds": self.instructions.by_stage(self.options.repeats) if self.instructions else None,
            "waiting_cpu_shares": self.clock.waiting_cpu_shares(),
            "others_cores": max(0.0, (busy - own) / wall) if busy else None,
        }

    @property
    def _tokens(self) -> int:
        return tokens_per_step(self.work.experiment.batch.global_batch_size, self.work.tokens_per_sample)

    def _setting(self) -> dict[str, Any]:
        experiment, threads = self.work.experiment, self.clock.threads
        return {
            "recipe": experiment.name,
            "against": self.options.against,
            "layers": sum(".layers." in layer.name for layer in self.work.spec.layers),
            "parameters": total_parameters(self.work.spec),
            "precision": experiment.train.precision,
            "zero_stage": experiment.parallel.zero_stage,
            **asdict(self.work.batch),
            "global_batch_size": experiment.batch.global_batch_size,
            "micro_batch_size": experiment.batch.micro_batch_size,
            "tokens_per_step": self._tokens,
            "threads": {"each_process": threads, "rival": self.clock.threads_alone},
        }

    def _turns(self, engine: Engine, bar: tqdm[Any]) -> Turns:
        own = self._batches(engine.data_parallel_rank, engine.data_parallel_size)

        def take(step: int) -> Seen:
            batches = own[step] if engine.needs_data else []
            result, spent = self.clock.together(lambda: engine.train_step(batches, self.rates[step]))
            return Seen(result.loss, result.grad_norm, spent)

        def tell(turns: Turns) -> None:
            bar.update()
            self._check(turns)
            if len(turns.engine.steps) == len(turns.rival.steps) == self.options.warmup:
                self.clocks_before = self._clocks()
                if self.instructions:
                    self.instructions.reset()

        return Turns(take, self._batches(0, 1), self.rates, self.options.warmup, tell)

    def _batches(self, rank: int, size: int) -> list[list[Batch]]:
        """The micro-batches of every step, made beforehand: making data is timed on neither side."""
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

    def _check(self, turns: Turns) -> None:
        """All ranks go on, or none."""
        rival, precision = self.rival, self.work.experiment.train.precision
        found = collectives.share_text(difference(turns, rival.comparable, precision, rival.title))
        if found:
            raise WorkDiffers(f"{found}: not the same work, so no times are given")
