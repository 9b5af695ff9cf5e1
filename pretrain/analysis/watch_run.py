"""What a watcher knows of a run: its curve so far, the newest depth profiles, events, and verdicts."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import yaml

from pretrain.analysis.figures import figure, worst
from pretrain.analysis.recorded_run import number, profiles, step_of
from pretrain.analysis.recorded_verdicts import newest_verdicts
from pretrain.analysis.watch_follow import Source
from pretrain.state.run_files import EVENTS, LAYERS, METRICS, VERDICTS, as_record

MOST_STEPS = 20_000
MOST_EVENTS = 200
RECENT = 20
"""Steps over which throughput is told."""


@dataclass
class WatchedRun:
    """State that `update` brings up to date from a source's new lines; it does not grow with the run."""

    source: Source
    config: dict[str, Any] = field(default_factory=dict)
    steps: dict[int, dict[str, float]] = field(default_factory=dict)
    """Step -> its figures, steps rising; of a long run the last ones, of them the older thinned."""
    sampled: int = 0
    """Step of `layers`; 0 if nothing was sampled yet."""
    layers: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """Figure -> group -> the newest profile [layers]; of several heads the worst."""
    events: list[dict[str, Any]] = field(default_factory=list)
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    """The worst first."""
    half_verdicts: list[bytes] = field(default_factory=list)
    heard: float = 0.0
    """time.monotonic() when the run last wrote something new."""

    def __post_init__(self) -> None:
        try:
            config = yaml.safe_load(self.source.config())
        except yaml.YAMLError:
            config = None
        self.config = config if isinstance(config, dict) else {}

    def update(self) -> None:
        """Take in what has been written since the last call."""
        metrics, layers, events = (self.source.lines(file) for file in (METRICS, LAYERS, EVENTS))
        if metrics or layers or events:
            self.heard = time.monotonic() - (0.0 if self.heard else self.source.silent)
        for record in filter(None, map(as_record, metrics)):
            self._take_step(record)
        # only the newest is shown: the others need not even be parsed
        newest = next(filter(None, map(as_record, reversed(layers))), None)
        if newest is not None:
            self._take_layers(newest)
        for record in filter(None, map(as_record, events)):
            if record not in self.events[-MOST_EVENTS:]:  # a file that was cut is read again from its end
                self.events.append(record)
        del self.events[:-MOST_EVENTS]
        for line in self.source.lines(VERDICTS):
            self._take_verdicts(line)

    def _take_step(self, record: dict[str, Any]) -> None:
        step = step_of(record)
        if step is None:
            return
        if self.steps and step < self.last_step:  # a rollback or a resume: what came after it is undone
            self.steps = {at: figures for at, figures in self.steps.items() if at < step}
        figures = {key: number(value) for key, value in record.items() if value is not None and key != "step"}
        self.steps[step] = self.steps.get(step, {}) | figures
        if len(self.steps) > MOST_STEPS:
            kept = list(self.steps)
            self.steps = {at: self.steps[at] for at in (*kept[: MOST_STEPS // 2 : 2], *kept[MOST_STEPS // 2 :])}

    def _take_layers(self, record: dict[str, Any]) -> None:
        self.sampled = step_of(record) or 0
        self.layers = {}
        for name, group, row in profiles(record):
            self.layers.setdefault(name, {})[group] = worst(name, row) if row.ndim == 2 else row

    def _take_verdicts(self, line: bytes) -> None:
        """A line of verdicts.json, which is one object over several lines and is replaced as a whole."""
        self.half_verdicts = [line] if line == b"{" else [*self.half_verdicts, line]
        if line == b"}" and (record := as_record(b"".join(self.half_verdicts))) is not None:
            self.verdicts = newest_verdicts(record)

    @property
    def last_step(self) -> int:
        """The newest step; 0 if none."""
        return next(reversed(self.steps), 0)

    def newest(self, key: str) -> float | None:
        """The newest value of a figure of metrics.jsonl."""
        return next((figures[key] for figures in reversed(self.steps.values()) if key in figures), None)

    def recent(self, key: str) -> float | None:
        """Its median over the last steps."""
        values = [f[key] for f in list(self.steps.values())[-RECENT:] if math.isfinite(f.get(key, math.nan))]
        return float(np.median(values)) if values else None

    def curve(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps [n] and values [n] of a figure."""
        points = [(step, figures[key]) for step, figures in self.steps.items() if key in figures]
        return np.array([at for at, _ in points], dtype=np.float64), np.array([value for _, value in points])

    def figures(self) -> list[str]:
        """Names of the figures that have a profile over depth, in the order of the report's sections."""
        deep = [name for name, groups in self.layers.items() if any(row.size > 1 for row in groups.values())]
        return sorted(deep, key=lambda name: SECTION_ORDER.index(figure(name).section))

    def parts(self, name: str) -> list[str]:
        """Parts of the layers of which a figure tells: "" for whole layers, "ffn" ..."""
        groups = self.layers.get(name, {})
        return list(dict.fromkeys(part_of(group) for group, row in groups.items() if row.size > 1))

    def profile(self, name: str, part: str) -> dict[str, np.ndarray]:
        """Group -> profile [layers], a group a stack."""
        groups = self.layers.get(name, {})
        return {group: row for group, row in groups.items() if row.size > 1 and part_of(group) == part}


SECTION_ORDER = ("norms", "gradients", "attention", "smoothing", "scalars", "other", "update")


def part_of(group: str) -> str:
    """ "decoder.ffn" -> "ffn"."""
    return group.partition(".")[2]
