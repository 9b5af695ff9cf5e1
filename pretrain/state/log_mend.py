"""A .jsonl log as a resume needs it: what lies beyond the checkpoint is cut off, damage is left out, holes are told.

What stood in the log up to a checkpoint, the checkpoint itself says: the steps of each kind of line, as ranges.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from pretrain.state.files import flush, naming, sync
from pretrain.state.run_files import as_record

SHOWN = 3
"""Holes that are told one by one."""


@dataclass
class Steps:
    """Steps in rising order, as few ranges (first, last, distance)."""

    ranges: list[tuple[int, int, int]] = field(default_factory=list)

    def add(self, step: int) -> None:
        """A step that is not below the last one."""
        if self.ranges:
            first, last, distance = self.ranges[-1]
            if step <= last:
                return
            if first == last or step - last == distance:
                self.ranges[-1] = (first, step, step - last)
                return
        self.ranges.append((step, step, 1))

    def missing(self, present: Iterable[int], limit: int) -> list[tuple[int, int]]:
        """Holes: (first, last) of the steps up to `limit` that are not present, joined where none between them is."""
        have = sorted(set(present))
        holes: list[tuple[int, int]] = []
        for first, last, distance in self.ranges:
            end = min(last, limit)
            if end < first:
                continue
            near = have[bisect_left(have, first) : bisect_right(have, end)]
            inside = [step for step in near if (step - first) % distance == 0]
            beyond = first + ((end - first) // distance + 1) * distance
            for before, after in pairwise([first - distance, *inside, beyond]):
                if after - before > distance:
                    holes.append((before + distance, after - distance))
        return holes


def steps_from_json(value: Any) -> dict[str, Steps]:
    """Kind of line -> its steps, from a checkpoint; what is not of that form says nothing."""
    found: dict[str, Steps] = {}
    for kind, ranges in value.items() if isinstance(value, dict) else ():
        whole = isinstance(ranges, list) and all(
            isinstance(entry, list) and len(entry) == 3 and all(type(number) is int for number in entry)
            for entry in ranges
        )
        if whole and all(0 <= first <= last and distance > 0 for first, last, distance in ranges):
            found[kind] = Steps([(first, last, distance) for first, last, distance in ranges])
    return found


def kind_of(record: dict[str, Any]) -> str:
    """What a line is about: the first key beside the step."""
    return next((key for key in record if key != "step"), "")


def step_in(record: dict[str, Any] | None) -> int | None:
    """The step that a line states; None if it is none of a log's lines."""
    step = record.get("step") if record is not None else None
    return step if type(step) is int and step >= 0 else None


@dataclass
class _Found:
    """What lies in a log."""

    lines: dict[tuple[int, str], tuple[int, int]] = field(default_factory=dict)
    """(step, kind) -> where the last such line up to the limit begins and ends."""
    size: int = 0
    damaged: int = 0
    """Lines that cannot be read and may belong before the limit."""
    twice: int = 0


def mend(
    path: Path, limit: int, expected: dict[str, Steps], waiting: Iterable[bytes] = ()
) -> tuple[str, dict[str, Steps]]:
    """Leave the lines up to step `limit`, each once and in order.

    A file whose end is all there is to cut is made shorter in its place, which needs no room on a disk.

    Args:
        path: a log each of whose lines states its step; need not exist.
        expected: the steps that should be there, a kind of line.
        waiting: further lines that are not in the file yet.

    Returns:
        What is wrong with it, in words (empty if nothing is), and the steps that are there now.

    Raises:
        OSError: it had to be written anew and could not be; it is as it was then.
    """
    found = _survey(path, limit)
    ordered = sorted(found.lines.items(), key=lambda item: (item[0][0], item[1]))
    spans = [span for _, span in ordered]
    in_place = all(before[1] == after[0] for before, after in pairwise(spans)) and (not spans or spans[0][0] == 0)
    moved = sum(after < before for before, after in pairwise(spans))
    if not in_place:
        _rewrite(path, spans)
    elif found.size > (end := spans[-1][1] if spans else 0):
        with naming(path):
            os.truncate(path, end)
        sync(path)
    there: dict[str, Steps] = {}
    present: dict[str, list[int]] = {}
    keys = [key for key, _ in ordered] + [(step, kind_of(record)) for step, record in _records(waiting)]
    for step, kind in keys:
        there.setdefault(kind, Steps()).add(step)
        present.setdefault(kind, []).append(step)
    holes = _joined(hole for kind, steps in expected.items() for hole in steps.missing(present.get(kind, ()), limit))
    parts = [
        f"{_lines(found.damaged)} could not be read and {_was(found.damaged)} left out" if found.damaged else "",
        f"{_lines(found.twice)} stood there twice and {_was(found.twice)} left out" if found.twice else "",
        f"{_lines(moved)} {_was(moved)} out of order and moved" if moved else "",
        _in_words(holes) if holes else "",
    ]
    return "; ".join(filter(None, parts)), there


def _survey(path: Path, limit: int) -> _Found:
    found, beyond = _Found(), False
    if not path.is_file():
        return found
    with naming(path), path.open("rb") as file:
        for line in file:
            start, found.size = found.size, found.size + len(line)
            record = as_record(line)
            step = step_in(record)
            if record is None or step is None:
                # Behind the limit a killed writer may have left anything, and what has no end it was writing.
                found.damaged += not beyond and line.endswith(b"\n")
                continue
            beyond = step > limit
            if beyond:
                continue
            key = (step, kind_of(record))
            found.twice += found.lines.pop(key, None) is not None
            found.lines[key] = (start, found.size)
    return found


def _rewrite(path: Path, spans: list[tuple[int, int]]) -> None:
    """Put a file of these parts in the place of the one they are of."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path), path.open("rb") as old, temporary.open("wb") as new:
            for start, end in spans:
                old.seek(start)
                line = old.read(end - start)
                new.write(line if line.endswith(b"\n") else line + b"\n")
            flush(new)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def _records(lines: Iterable[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    for record in map(as_record, lines):
        if record is not None and (step := step_in(record)) is not None:
            yield step, record


def _joined(holes: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """In order, those that overlap as one."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(holes):
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined


def _in_words(holes: list[tuple[int, int]]) -> str:
    shown = ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in holes[:SHOWN])
    more = f" and {len(holes) - SHOWN} more holes" if len(holes) > SHOWN else ""
    one = len(holes) == 1 and holes[0][0] == holes[0][1]
    return f"{'step' if one else 'steps'} {shown}{more} {'is' if one else 'are'} missing"


def _lines(count: int) -> str:
    return "1 line" if count == 1 else f"{count} lines"


def _was(count: int) -> str:
    return "was" if count == 1 else "were"
