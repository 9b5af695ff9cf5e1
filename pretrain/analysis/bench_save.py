"""How long training stands still for a save: in the background against waiting for it, in turns.

Both sides copy into the same reused buffers and flush every file; the synchronous one waits until the checkpoint is
complete, the asynchronous one only for the copy. What the background costs the steps beside it is measured on its own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from pretrain.analysis.bench_clock import RankClock
from pretrain.analysis.bench_statistics import PairedRatio, paired_ratio
from pretrain.checkpoint.save import Saver
from pretrain.parallel import collectives
from pretrain.parallel.engine import Engine
from pretrain.state.keep import Keep

BOUND = 0.1
"""Asynchronous over synchronous stall, at most."""
MEMORY_BOUND = 2.2
"""Peak memory while saving or resuming over what the rank holds, at most."""


@dataclass
class SaveTimes:
    """Seconds, on the slowest rank; one entry a pair."""

    asynchronous: list[float] = field(default_factory=list)
    """Training stood still for the copy."""
    synchronous: list[float] = field(default_factory=list)
    """It stood still until the checkpoint was complete."""
    beside: list[float] = field(default_factory=list)
    """A step while a save was being written; empty if no steps were asked for."""
    alone: list[float] = field(default_factory=list)
    """A step while none was."""

    def ratio(self) -> PairedRatio:
        return paired_ratio(self.asynchronous, self.synchronous)


def measure_saves(
    engine: Engine,
    training: Callable[[], dict[str, Any]],
    step: Callable[[], object] | None,
    checkpoints: Path,
    clock: RankClock,
    pairs: int,
) -> SaveTimes:
    """Save again and again; one warm-up save of each kind, which allocates the buffers. Collective.

    Args:
        engine: its state is saved.
        training: the trainer's state, made anew for each save.
        step: one optimizer step, timed beside an asynchronous save and after a synchronous one; None: no steps.
        checkpoints: an empty folder on the disk in question; the newest save stays there.
        clock: of all ranks.
        pairs: that count.
    """
    saver, times, number = Saver(checkpoints, Keep(1), {"bench": True}, {}, lambda saved: None), SaveTimes(), 0

    def save(waits: bool) -> float:
        nonlocal number
        number += 1

        def stand_still() -> None:
            saver.begin(number, engine, training(), time.perf_counter())
            if waits:
                saver.wait()

        return clock.together(stand_still)[1].seconds

    def one(waits: bool, counts: bool) -> None:
        stall = save(waits)
        seconds = clock.together(step)[1].seconds if step else None
        saver.wait()
        if counts:
            (times.synchronous if waits else times.asynchronous).append(stall)
            if seconds is not None:
                (times.alone if waits else times.beside).append(seconds)

    for pair in range(pairs + 1):
        for waits in (True, False) if pair % 2 else (False, True):
            one(waits, counts=pair > 0)
    return times


@dataclass(frozen=True)
class Held:
    """Bytes of main memory of the largest rank, beyond what it had before it built its engine."""

    trained: int
    """After the first step: weights, gradients, moments, and what the step left behind."""
    saving: int
    """At most, while saves were made and written; with the copy's buffers."""
    resuming: int
    """At most, while the checkpoint was read back; the buffers are still there."""

    def largest(self) -> Held:
        """Over all ranks. Collective."""
        mine = torch.tensor([self.trained, self.saving, self.resuming])
        return Held(*collectives.max_over(mine).tolist())


def state_bytes(engine: Engine) -> int:
    """Of all ranks: what a save writes, headers apart."""
    own = sum(3 * 4 * shard.weight.numel() for shard in engine.owned_shards())
    return int(collectives.sum_over(torch.tensor(own)).item())


def saves_report(times: SaveTimes, count: int, held: Held | None = None) -> dict[str, Any]:
    """Figures as JSON; `count` bytes were saved each time. Memory is left out where it is not known."""
    ratio = times.ratio()
    return {
        "state_bytes": count,
        "asynchronous_stall_seconds": times.asynchronous,
        "synchronous_stall_seconds": times.synchronous,
        "step_seconds_beside_a_save": times.beside,
        "step_seconds_alone": times.alone,
        "ratio": {"median": ratio.median, "low": ratio.low, "high": ratio.high, "confidence": ratio.confidence},
        "bound": BOUND,
        "held_bytes": asdict(held) if held else None,
    }


def saves_text(name: str, report: dict[str, Any]) -> str:
    """A few lines for the terminal."""
    ratio, waits = report["ratio"], statistics.median(report["synchronous_stall_seconds"])
    goes_on = statistics.median(report["asynchronous_stall_seconds"])
    lines = [
        f"{name}: {report['state_bytes'] / 2**20:.0f} MiB of state, {len(report['synchronous_stall_seconds'])} pairs",
        f"  synchronous save     training stands still for {waits:.3f} s",
        f"  asynchronous save    training stands still for {goes_on:.3f} s",
        f"  ratio {ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f}, {ratio['confidence']:.0%}); "
        f"bound {report['bound']:.2f}: {'met' if ratio['median'] <= report['bound'] else 'not met'}",
    ]
    if report["step_seconds_alone"]:
        beside, alone = (statistics.median(report[key]) for key in ("step_seconds_beside_a_save", "step_seconds_alone"))
        lines.append(f"  a step takes {alone:.3f} s, {beside:.3f} s while a save is being written")
    if held := report["held_bytes"]:
        trained = held["trained"]
        lines.append(
            f"  the largest rank holds {trained / 2**20:.0f} MiB after a step, at most {held['saving'] / trained:.2f} "
            f"times that while saving and {held['resuming'] / trained:.2f} while reading back; bound {MEMORY_BOUND}"
        )
    return "\n".join(lines)
