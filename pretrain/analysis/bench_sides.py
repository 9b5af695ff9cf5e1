"""The two sides of a benchmark: what both are given, what is seen of their steps, and whose turn it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

from pretrain.analysis.bench_clock import RankClock, Spent
from pretrain.config.checks import BatchPlan
from pretrain.config.schema import Experiment
from pretrain.data.loader import Batch
from pretrain.data.samples import Samples
from pretrain.models.layers import ModelSpec
from pretrain.objectives.tokens import SpecialTokens

LOSS, GRAD_NORM = "loss", "grad_norm"  # of Seen
WORDS = {LOSS: "loss", GRAD_NORM: "gradient norm"}
TOLERANCES = {"fp32": {LOSS: 1e-5, GRAD_NORM: 1e-3}, "bf16": {LOSS: 2e-2, GRAD_NORM: 0.2}}
"""Relative differences up to which both are taken to have done the same. A gradient norm feels the rounding of the
steps before it sooner than a loss (3e-5 after 12 steps of 1000 layers). In bf16 the engine holds bf16 weights and the
others autocast fp32 ones, so they round differently from the first step on."""


class WorkDiffers(Exception):
    """The engine and its rival did not compute the same, so their times say nothing about each other."""


@dataclass(frozen=True)
class Work:
    """A checked experiment, as `build.plan` makes it."""

    experiment: Experiment
    batch: BatchPlan
    spec: ModelSpec
    deepspeed: dict[str, Any]
    train: Samples
    tokens_per_sample: int
    special: SpecialTokens


@dataclass(frozen=True)
class Options:
    """How to measure."""

    repeats: int = 9
    """Pairs that count."""
    warmup: int = 2
    """Steps of each side before them, at least 1."""
    against: str = "plain"
    """plain or hf."""
    optimizer: str = "default"
    """The plain loop's AdamW, a key of bench_plain.ADAMW."""
    rival_threads: int = 0
    """CPU threads of the rival; 0: as many as all processes of the engine together."""


@dataclass(frozen=True)
class Seen:
    """What one optimizer step showed, equal on every rank."""

    loss: float
    """Per target token of the global batch."""
    grad_norm: float
    """Before clipping."""
    spent: Spent


@dataclass
class Record:
    """One side's steps, warm-up included."""

    start_up_seconds: float = 0.0
    """Building and initialising it."""
    steps: list[Seen] = field(default_factory=list)

    def seconds(self, warmup: int) -> list[float]:
        return [step.spent.seconds for step in self.steps[warmup:]]

    def cpu_seconds(self, warmup: int) -> list[float]:
        return [step.spent.cpu_seconds for step in self.steps[warmup:]]

    def figures(self, warmup: int, tokens: int) -> dict[str, Any]:
        timed = self.seconds(warmup)
        return {
            "start_up_seconds": self.start_up_seconds,
            "first_step_seconds": self.steps[0].spent.seconds,
            "step_seconds": timed,
            "step_cpu_seconds": self.cpu_seconds(warmup),
            "median_step_seconds": median(timed),
            "tokens_per_second": tokens / median(timed),
        }


class Rival(ABC):
    """What the engine is compared with.

    Args:
        work: a work that `check` lets pass.
        clock: for its times.
        log: beside it files may be left.
        options: the same on every rank.
    """

    title: ClassVar[str]
    """As messages name it."""
    comparable: tuple[str, ...] = (LOSS, GRAD_NORM)
    """Which figures must agree."""

    def __init__(self, work: Work, clock: RankClock, log: Path, options: Options):
        self.work, self.clock, self.log, self.options = work, clock, log, options

    @staticmethod  # noqa: B027  (one that can do all need not say so)
    def check(work: Work) -> None:
        """Raise a UserError, one line, where the rival cannot do this work."""

    def rates(self, rates: Sequence[float]) -> list[float]:
        """The learning rates that both sides train with, in place of the schedule's `rates`."""
        return list(rates)

    @abstractmethod
    def run(self, turns: Turns) -> None:
        """Build it, and take its turns until there are none left.

        Before each of its steps it calls `turns.reach_rival`, after it `turns.rival_took`.
        """

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What a reader of the figures must know of it."""


class Turns:
    """Whose step is next: the engine warms up, then the rival, then they take turns in pairs.

    Who goes first in a pair changes, so that neither always finds what the other leaves behind.

    Args:
        take: runs the engine's step of that number, from 0 on.
        batches: the micro-batches of the global batch of every step; for the rival.
        rates: the learning rate of every step.
        warmup: steps of each side before the pairs.
        tell: called after every step of either side.
    """

    def __init__(
        self,
        take: Callable[[int], Seen],
        batches: Sequence[list[Batch]],
        rates: Sequence[float],
        warmup: int,
        tell: Callable[[Turns], None],
    ):
        self.engine, self.rival = Record(), Record()
        self.batches, self.rates, self.warmup = batches, rates, warmup
        self._take, self._tell = take, tell
        order = [*[self.engine] * warmup, *[self.rival] * warmup]
        for pair in range(len(rates) - warmup):
            order += [self.engine, self.rival] if pair % 2 else [self.rival, self.engine]
        self._order = deque(order)

    def reach_rival(self) -> bool:
        """Take the engine's steps that come before the rival's next one; False where the rival has none left."""
        while self._order and self._order[0] is self.engine:
            self._order.popleft()
            self.engine.steps.append(self._take(len(self.engine.steps)))
            self._tell(self)
        return bool(self._order)

    @property
    def next(self) -> int:
        """Number of the rival's next step, from 0 on."""
        return len(self.rival.steps)

    def rival_took(self, seen: Seen) -> None:
        """The rival's own step, right after it."""
        self._order.popleft()
        self.rival.steps.append(seen)
        self._tell(self)


def largest_difference(turns: Turns, figure: str) -> float:
    """Largest relative difference of a figure of both sides, over the steps that both have taken."""
    pairs = zip(turns.engine.steps, turns.rival.steps, strict=False)
    values = [(getattr(ours, figure), getattr(theirs, figure)) for ours, theirs in pairs]
    return max(abs(ours - theirs) / abs(theirs) for ours, theirs in values)


def difference(turns: Turns, figures: Sequence[str], precision: str, title: str) -> str:
    """The first figure by which both sides' newest common step differs, in words; empty where none does."""
    step = min(len(turns.engine.steps), len(turns.rival.steps))
    for figure in figures if step else ():
        ours, theirs = (getattr(side.steps[step - 1], figure) for side in (turns.engine, turns.rival))
        if not abs(ours - theirs) <= TOLERANCES[precision][figure] * abs(theirs):  # also where one is not a number
            return f"step {step}: {WORDS[figure]} {ours:.9g} of the engine, {theirs:.9g} of {title}"
    return ""
