"""What the depth signals cost: sampled steps, unsampled steps and steps of a run without signals, in turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from statistics import median
from typing import Any

from pretrain.analysis.bench_clock import RankClock, Spent
from pretrain.analysis.bench_statistics import paired_ratio
from pretrain.config.schema import MonitorsSection
from pretrain.errors import ConfigError
from pretrain.monitors.depth import DepthSignals
from pretrain.monitors.every_signal import every_signal
from pretrain.monitors.probe import Probe
from pretrain.training.loop import StepReport, Trainer

PLAIN, UNSAMPLED, SAMPLED = "plain", "unsampled", "sampled"
STEP_BOUND = 1.5
"""A sampled step over a plain one, at most."""
SHARE_BOUND = 0.02
"""Of the time at the default interval, at most."""

Kind = tuple[DepthSignals | None, int]
"""The callback, and the number of the step that it is told."""


def kinds(trainer: Trainer, probe: Callable[[], Probe], each: bool) -> dict[str, Kind]:
    """What is timed, by name; with `each` also steps sampled by one signal alone.

    Raises:
        ConfigError: every step would be sampled, or none.
    """
    experiment, spec = trainer.experiment, trainer.spec
    interval = experiment.monitors.interval
    if interval < 2:
        raise ConfigError(f"monitors.interval = {interval}: there is nothing to compare; set monitors.interval=50")
    every = DepthSignals(every_signal(experiment, spec), probe())
    found: dict[str, Kind] = {PLAIN: (None, 0), UNSAMPLED: (every, interval + 1), SAMPLED: (every, interval)}
    if each:
        for signal in every_signal(experiment, spec):
            found[type(signal).__name__] = (DepthSignals([signal], probe()), interval)
    for depth in {id(depth): depth for depth, _ in found.values() if depth is not None}.values():
        depth.on_start(trainer)
    return found


def measure_signals(
    trainer: Trainer, chosen: dict[str, Kind], clock: RankClock, rounds: int, warmup: int
) -> dict[str, list[Spent]]:
    """What each kind of step takes, once a round. Collective.

    All steps train on one batch at the rate 0. Within a round the kinds follow each other, and the round's first kind
    changes, so that none always finds what the same other one leaves behind.

    Args:
        trainer: a session that has taken no step.
        chosen: as of `kinds`.
        clock: of all ranks.
        rounds: that count.
        warmup: rounds before them.
    """
    engine, names = trainer.engine, list(chosen)
    batches = trainer.loader.next() if engine.needs_data else trainer.loader.pass_by()
    spent: dict[str, list[Spent]] = {name: [] for name in names}

    def take(depth: DepthSignals | None, step: int) -> None:
        if depth is not None:
            depth.on_step_begin(trainer, step)
        result = engine.train_step(batches, 0.0)
        if depth is not None:
            depth.on_step_end(trainer, StepReport(step, result, 0.0, 1.0, 0.0))

    for number in range(warmup + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            depth, step = chosen[name]
            _, found = clock.together(lambda depth=depth, step=step: take(depth, step))  # type: ignore[misc]
            if number >= warmup:
                spent[name].append(found)
    return spent


def share_of_time(ratio: float, interval: int) -> float:
    """Part of the training time that samples take: one step of `interval` costs `ratio` plain ones."""
    return (ratio - 1.0) / (interval + ratio - 1.0)


def signals_report(trainer: Trainer, spent: dict[str, list[Spent]]) -> dict[str, Any]:
    """Figures as JSON: seconds of the slowest rank, CPU seconds of all, and each over the plain step of its round."""
    interval = MonitorsSection().interval
    seconds = {name: [each.seconds for each in found] for name, found in spent.items()}
    cpu_seconds = {name: [each.cpu_seconds for each in found] for name, found in spent.items()}
    ratios = _ratios(seconds)
    return {
        "recipe": trainer.experiment.name,
        "layers": sum(".layers." in layer.name for layer in trainer.spec.layers),
        "default_interval": interval,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "ratios": ratios,
        "cpu_ratios": _ratios(cpu_seconds),
        "share_of_time": share_of_time(ratios[SAMPLED]["median"], interval),
        "bounds": {"sampled": STEP_BOUND, "share_of_time": SHARE_BOUND},
    }


def _ratios(seconds: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    return {name: asdict(paired_ratio(found, seconds[PLAIN])) for name, found in seconds.items() if name != PLAIN}


def signals_text(report: dict[str, Any]) -> str:
    """A few lines for the terminal."""
    seconds, ratios, bounds = report["seconds"], report["ratios"], report["bounds"]
    cpu = report["cpu_ratios"]
    lines = [
        f"{report['recipe']}: {report['layers']} layers, {len(seconds[PLAIN])} rounds; "
        f"a plain step takes {median(seconds[PLAIN]):.3f} s"
    ]
    for name, ratio in ratios.items():
        verdict = _verdict(ratio["median"], bounds["sampled"]) if name == SAMPLED else ""
        interval = f"{ratio['low']:.3f} to {ratio['high']:.3f}, {ratio['confidence']:.0%}"
        lines.append(
            f"  {name:<16} {ratio['median']:.3f} plain steps ({interval}){verdict}; CPU time {cpu[name]['median']:.3f}"
        )
    share = report["share_of_time"]
    verdict = _verdict(share, bounds["share_of_time"], ".0%")
    lines.append(f"  every {report['default_interval']} steps that is {share:.2%} of the time{verdict}")
    return "\n".join(lines)


def _verdict(value: float, bound: float, form: str = "") -> str:
    return f"; bound {format(bound, form)}: {'met' if value <= bound else 'not met'}"
