"""Reads a run's folder into a small typed object.

Files only, never a live process, and no torch, so that a report starts at once. What a killed or still running
writer leaves behind (a half-written last line, a missing summary) is normal here, not an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pretrain.analysis.figures import worst
from pretrain.state.bounded import BadFile, parse_json, read_bounded
from pretrain.state.bounded_yaml import load_yaml
from pretrain.state.run_files import CONFIG, EVENTS, LAYERS, METRICS, SUMMARY, VERDICTS, as_record, check_run


@dataclass(frozen=True)
class Series:
    """One logged figure: `steps` [n] int64, rising; `values` [n] float64, which may be NaN or infinite as logged."""

    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class LayerSignal:
    """One depth signal of one row group: `steps` [n] int64, rising; `values` [n, layers] float64, NaN if missing.

    Where a layer has a value a head, `heads` [n, layers, heads] float32 has them and `values` the worst of each layer.
    """

    signal: str
    group: str
    steps: np.ndarray
    values: np.ndarray
    heads: np.ndarray | None = None

    @property
    def layers(self) -> int:
        return int(self.values.shape[1])


@dataclass(frozen=True)
class RecordedRun:
    """What a run's folder says. Absent files leave their part empty; `notes` tells what could not be read."""

    path: Path
    name: str
    config: dict[str, Any]
    metrics: dict[str, Series]
    layers: list[LayerSignal]
    events: list[dict[str, Any]]
    summary: dict[str, Any]
    verdicts: dict[str, Any] = field(default_factory=dict)
    """What verdicts.json holds."""
    notes: list[str] = field(default_factory=list)

    @property
    def last_step(self) -> int:
        """The last step in the logs; 0 if none."""
        return max((int(series.steps[-1]) for series in self.metrics.values()), default=0)


def read_run(path: Path) -> RecordedRun:
    """Read the run in folder `path`.

    Raises:
        UserError: `path` is no folder, or holds neither config.yaml nor metrics.jsonl.
    """
    check_run(path)
    notes: list[str] = []
    config = _read_mapping(path / CONFIG, notes)
    return RecordedRun(
        path=path,
        name=str(config.get("name") or path.resolve().name),
        config=config,
        metrics=_metrics(_read_lines(path / METRICS, notes)),
        layers=_layers(_read_lines(path / LAYERS, notes)),
        events=list(_read_lines(path / EVENTS, notes)),
        summary=_read_mapping(path / SUMMARY, notes),
        verdicts=_read_mapping(path / VERDICTS, notes),
        notes=notes,
    )


def _read_mapping(path: Path, notes: list[str]) -> dict[str, Any]:
    """A YAML or JSON file that holds one mapping; empty, with a note, if it cannot be read as such."""
    if not path.is_file():
        return {}
    try:
        content = read_bounded(path, follow=True)
        value = parse_json(content) if path.suffix == ".json" else load_yaml(content)
    except (ValueError, yaml.YAMLError, BadFile):
        value = None
    if isinstance(value, dict):
        return value
    notes.append(f"{path.name} could not be read and is left out")
    return {}


def _read_lines(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of a .jsonl file, one at a time: layers.jsonl of a deep run is larger than what should be in memory.

    A half-written last line is dropped in silence, other damage with a note.
    """
    if not path.is_file():
        return
    damaged = 0
    try:
        with path.open("rb") as file:
            for line in file:
                record = as_record(line)
                if record is not None:
                    yield record
                elif line.strip() and line.endswith(b"\n"):  # else its writer was not done
                    damaged += 1
    except OSError as error:
        notes.append(f"{path.name} could not be read ({error.strerror}) beyond a point and is left out from there")
    if damaged:
        notes.append(f"{path.name}: {damaged} unreadable line{'s' if damaged > 1 else ''} left out")


def step_of(record: dict[str, Any]) -> int | None:
    """The step that a record is about; None if it states none."""
    step = number(record.get("step"))
    return int(step) if math.isfinite(step) else None


def number(value: Any) -> float:
    """`value` as a float; NaN for anything that is none. Writers spell infinities as numbers or as text."""
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return math.nan
    return math.nan


def _metrics(records: Iterator[dict[str, Any]]) -> dict[str, Series]:
    """Every figure over steps. A step that was logged twice counts as logged last."""
    columns: dict[str, dict[int, float]] = {}
    for record in records:
        step = step_of(record)
        if step is None:
            continue
        for key, value in record.items():
            if key == "step" or value is None or isinstance(value, dict | list | bool):
                continue
            columns.setdefault(key, {})[step] = number(value)
    return {key: _series(column) for key, column in columns.items()}


def _series(column: dict[int, float]) -> Series:
    steps = sorted(column)
    return Series(np.array(steps, dtype=np.int64), np.array([column[step] for step in steps], dtype=np.float64))


def _layers(records: Iterator[dict[str, Any]]) -> list[LayerSignal]:
    """The depth signals in the order of their first appearance. A step that was sampled twice counts as last."""
    rows: dict[tuple[str, str], dict[int, np.ndarray]] = {}
    for record in records:
        step = step_of(record)
        if step is None:
            continue
        for signal, group, row in profiles(record):
            rows.setdefault((signal, group), {})[step] = row
    signals_read = [_layer_signal(signal, group, samples) for (signal, group), samples in rows.items()]
    return [signal for signal in signals_read if signal.layers > 0]


def profiles(record: dict[str, Any]) -> Iterator[tuple[str, str, np.ndarray]]:
    """(figure, group, values) of a line of layers.jsonl; values [layers] float64, or [layers, heads] float32."""
    signals = record.get("signals")
    for signal, groups in signals.items() if isinstance(signals, dict) else ():
        for group, values in groups.items() if isinstance(groups, dict) else ():
            yield signal, group, _row(values if isinstance(values, list) else [values])


def _row(cells: list[Any]) -> np.ndarray:
    several = any(isinstance(cell, list) for cell in cells)
    try:
        row = np.asarray(cells, dtype=np.float32 if several else np.float64)  # the quick way; null becomes NaN here
    except (TypeError, ValueError, OverflowError):
        if not several:
            return np.array([number(cell) for cell in cells], dtype=np.float64)
        lists = [cell if isinstance(cell, list) else [cell] for cell in cells]
        row = np.full((len(lists), max(1, *map(len, lists))), math.nan, dtype=np.float32)
        for index, heads in enumerate(lists):
            row[index, : len(heads)] = [number(head) for head in heads]
    if not several:
        return row
    return row.reshape(len(cells), -1) if row.size else np.full((len(cells), 1), math.nan, dtype=np.float32)


def _layer_signal(signal: str, group: str, samples: dict[int, np.ndarray]) -> LayerSignal:
    steps = sorted(samples)
    layers = max(len(row) for row in samples.values())
    width = max(row.shape[1] if row.ndim == 2 else 0 for row in samples.values())
    values = np.full((len(steps), layers), math.nan)
    heads = np.full((len(steps), layers, width), math.nan, dtype=np.float32) if width else None
    for index, step in enumerate(steps):
        row = samples.pop(step)  # so that a large run is not held twice
        values[index, : len(row)] = worst(signal, row) if row.ndim == 2 else row
        if heads is not None and row.ndim == 2:
            heads[index, : len(row), : row.shape[1]] = row
    return LayerSignal(signal, group, np.array(steps, dtype=np.int64), values, heads)
