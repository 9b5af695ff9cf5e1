"""A verdict on each signal: ok, watch or alarm, in a sentence that says what it means and what usually helps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

from pretrain.config.schema import Experiment, VerdictsSection
from pretrain.monitors import cures
from pretrain.monitors.verdict_history import History, Profiles
from pretrain.monitors.verdict_rules import NEVER_MISSING, RULES, Rule, Value, as_it_is

NOT_FINITE = "not_finite"
"""The verdict on all figures at once, beside those of the rules."""


class Level(IntEnum):
    """How bad it is."""

    OK = 0
    WATCH = 1
    ALARM = 2


@dataclass(frozen=True)
class Verdict:
    """On one signal, by the place where it is worst."""

    signal: str
    """As in the section `verdicts`; "not_finite" beside these."""
    figure: str
    """Of layers.jsonl, that it was read from."""
    group: str
    layer: int
    """Row of the group, from 0."""
    level: Level
    value: float
    threshold: float | None
    """The bound that was passed, or, if all is well, the one that was not; None where there is none."""
    sentence: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"level": self.level.name.lower()}


def verdicts(profiles: Profiles, history: History, experiment: Experiment) -> list[Verdict]:
    """One verdict a signal that the profiles show, the worst first. A figure that is not there has none.

    Args:
        profiles: of one sample, as layers.jsonl has them (None counts as NaN).
        history: of the samples before; `history.add` this one afterwards.
        experiment: whose section `verdicts` has the bounds, and whose settings are not advised anew.
    """
    found = [not_finite(profiles, experiment)] if profiles else []
    worst = {rule.name: _worst(rule, profiles, history) for rule in RULES if rule.figure in profiles}
    for rule in RULES:
        if (value := worst.get(rule.name)) is not None:
            found.append(_judged(rule, value, profiles, experiment))
    return ranked(found)


def ranked(found: Iterable[Verdict]) -> list[Verdict]:
    """The worst first, of the same level in the order of the rules."""
    order = [NOT_FINITE, *(rule.name for rule in RULES)]
    return sorted(found, key=lambda verdict: (-verdict.level, order.index(verdict.signal)))


def not_finite(profiles: Profiles, experiment: Experiment) -> Verdict:
    """Alarm if anything is infinite, or NaN where that cannot mean "nothing to measure"."""
    wrong = [
        (figure, value)
        for figure, groups in profiles.items()
        for value in as_it_is(figure, groups, History())
        if math.isinf(value.value) or (math.isnan(value.value) and figure in NEVER_MISSING)
    ]
    if not wrong:
        return Verdict(NOT_FINITE, "", "", 0, Level.OK, 0.0, 0.0, "all figures are finite")
    (figure, first), count = wrong[0], len(wrong)
    where = f"{count} of the figures, first {figure} in {place(first, profiles[figure])},"
    sentence = f"not finite are {where} so that the run has broken; {cures.advised(cures.BROKEN, experiment)}"
    return Verdict(NOT_FINITE, figure, first.group, first.layer, Level.ALARM, float(count), 0.0, sentence)


def place(value: Value, groups: Mapping[str, Sequence[Any]]) -> str:
    """In words; a group of one row has no layers."""
    layer = f", layer {value.layer}" if len(groups[value.group]) > 1 else ""
    return f"{value.group}{layer}" + ("" if value.head is None else f", head {value.head}")


def telling(value: float, bound: float | None) -> str:
    """A value in at least three digits, and as many as it takes to see how far from its bound it lies; one that is not
    a whole number is not shown as one."""
    gap = 0.01 * abs(value - bound) if bound is not None else abs(value)
    for digits in range(3, 17):
        text = f"{value:.{digits}g}"
        shown = float(text)
        if abs(shown - value) <= gap and (shown != round(value) or value == shown):
            return text
    return f"{value:.17g}"


def _sign(name: str) -> int:
    """Times a value, it grows as the value gets worse."""
    return -1 if VerdictsSection.worse_below(name) else 1


def _passed(name: str, value: float, bound: float | None) -> bool:
    return bound is not None and _sign(name) * value > _sign(name) * bound


def _worst(rule: Rule, profiles: Profiles, history: History) -> Value | None:
    sign = _sign(rule.name)
    values = rule.reading(rule.figure, profiles[rule.figure], history)
    return max((value for value in values if math.isfinite(value.value)), key=lambda v: sign * v.value, default=None)


def _level(name: str, value: float, thresholds: VerdictsSection) -> Level:
    watch, alarm = getattr(thresholds, name)
    return Level.ALARM if _passed(name, value, alarm) else Level.WATCH if _passed(name, value, watch) else Level.OK


def _judged(rule: Rule, worst: Value, profiles: Profiles, experiment: Experiment) -> Verdict:
    thresholds = experiment.verdicts
    watch, alarm = getattr(thresholds, rule.name)
    level = _level(rule.name, worst.value, thresholds)
    if level == Level.ALARM and rule.supported_by and not _supported(rule.supported_by, worst, profiles, thresholds):
        level = Level.WATCH
    threshold = alarm if level == Level.ALARM else watch
    kind, side = "alarm" if level == Level.ALARM else "watch", "above" if _sign(rule.name) > 0 else "below"
    where = place(worst, profiles[rule.figure])
    bound = "no bound" if threshold is None else f"{kind} {side} {threshold:g}"
    sentence = f"{rule.name} is {telling(worst.value, threshold)} in {where} ({bound})"
    if level > Level.OK:
        sentence += ": " + "; ".join(filter(None, [rule.meaning, cures.advised(rule.cure, experiment)]))
    return Verdict(rule.name, rule.figure, worst.group, worst.layer, level, worst.value, threshold, sentence)


def _supported(name: str, where: Value, profiles: Profiles, thresholds: VerdictsSection) -> bool:
    """Whether another signal is beyond its watch in the same layer of the same group."""
    (figure,) = (rule.figure for rule in RULES if rule.name == name)
    groups = {group: rows for group, rows in profiles.get(figure, {}).items() if group == where.group}
    return any(
        value.layer == where.layer and _level(name, value.value, thresholds) > Level.OK
        for value in as_it_is(figure, groups, History())
    )


def worst_of(found: Sequence[Verdict]) -> Verdict | None:
    """The first that is not ok, for a line of text; None if all is well."""
    return found[0] if found and found[0].level > Level.OK else None
