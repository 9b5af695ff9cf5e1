"""The files of a run's folder, by name, and summary.json, which several programs write to."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pretrain.errors import CheckpointError, UserError
from pretrain.state.files import replace_text

CONFIG = "config.yaml"
TOKENIZER = "tokenizer.model"
DEEPSPEED = "deepspeed.json"
SUMMARY = "summary.json"
VERDICTS = "verdicts.json"
METRICS, LAYERS, EVENTS = "metrics.jsonl", "layers.jsonl", "events.jsonl"
CHECKPOINTS = "checkpoints"
ASIDE = "aside"
"""The state in which a run was stopped, in doubt: for a look, never resumed from."""
LOGS, TENSORBOARD = "logs", "tensorboard"
FOLDERS = (CHECKPOINTS, ASIDE, LOGS, TENSORBOARD)


def check_run(path: Path, also: str = "") -> None:
    """Raises UserError: `path` is not the folder of a run. `also`: what else could be given."""
    if path.is_file():
        raise UserError(f"{path}: is a file; give the run's folder, {path.parent}")
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder; give the folder that run.dir names{also}")
    if not (path / CONFIG).is_file() and not (path / METRICS).is_file():
        raise UserError(f"{path}: not a run folder (no {CONFIG}, no {METRICS}); give the folder of one run")


def read_summary(run: Path) -> dict[str, Any]:
    """summary.json of a run; empty if there is none.

    Raises:
        CheckpointError: it is there and is not a JSON object.
    """
    path = run / SUMMARY
    if not path.is_file():
        return {}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        summary = None
    if not isinstance(summary, dict):
        raise CheckpointError(f"{path}: is not a JSON object; remove it, the next training session writes it again")
    return summary


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a .jsonl log, one at a time; none if it is not there. Half a killed writer's line is left out."""
    if path.is_file():
        with path.open("rb") as file:
            yield from filter(None, map(as_record, file))


def as_record(line: bytes) -> dict[str, Any] | None:
    """The object on a line of a .jsonl log; None if there is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def events(run: Path) -> Iterator[dict[str, Any]]:
    """What events.jsonl tells, each with `event`, its name; lines without one are left out."""
    return (record for record in records(run / EVENTS) if isinstance(record.get("event"), str))


def tells_of_saves(run: Path) -> bool:
    """Whether events.jsonl speaks of a checkpoint that was complete."""
    return any(event["event"] in ("save", "resume") for event in events(run))


def merge_summary(run: Path, figures: dict[str, Any]) -> None:
    """Add `figures` to the run's summary.json, atomically.

    Raises:
        CheckpointError: summary.json is there and is not a JSON object.
    """
    write_summary(run, {**read_summary(run), **figures})


def write_summary(run: Path, figures: dict[str, Any]) -> None:
    """Put `figures` into the run's summary.json in place of what it said, atomically."""
    replace_text(run / SUMMARY, json.dumps(finite(figures), indent=1) + "\n")


def json_line(entry: dict[str, Any]) -> str:
    """A line of a .jsonl log; figures that are not finite become null, as JSON has none."""
    try:
        return json.dumps(entry, allow_nan=False) + "\n"
    except ValueError:
        return json.dumps(finite(entry)) + "\n"


def finite(value: Any) -> Any:
    """`value` with null for every number that is not finite: JSON has no word for it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
