"""Heartbeats: a small file a rank, by which ranks see each other without any collective.

Only changes of content are compared, as they are seen here: clocks of other machines do not matter.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, Protocol

from pretrain.resilience.limits import START, Limits
from pretrain.resilience.machine import GONE, STOPPED, identity, state_of
from pretrain.state.files import naming

Status = Literal["runs", "dumped", "ended", "crashed"]


@dataclass(frozen=True)
class Beat:
    """What a rank says of itself."""

    session: str
    rank: int
    host: str
    pid: int
    number: int
    """Counts the beats, so that each differs from the one before."""
    step: int
    """The step it is in, or has done last."""
    phase: str
    layer: str
    direction: str
    micro_batch: int
    marks: int
    """Marks of progress since the session's start."""
    still: float
    """Seconds since its last mark."""
    overdue: bool
    """Whether that is longer than it may be in this phase."""
    waits_in: str
    """The collective that its main thread is in; empty if none is seen."""
    status: Status = "runs"
    """dumped: its stacks are written; ended, crashed: its session is over."""
    exit_code: int = 0
    """Once it is over."""
    machine: str = ""
    """See `machine.identity`."""
    clock: float = 0.0
    """When it was written, by that machine's clock."""
    born: float = 0.0
    """When its process started, by the same clock."""

    @property
    def over(self) -> bool:
        return self.status in ("ended", "crashed")

    @property
    def place(self) -> str:
        """Where it is, in words."""
        parts = [f"step {self.step}", self.phase if self.phase != "step" else ""]
        parts += [f"{self.direction} of {self.layer}" if self.layer else ""]
        parts += [f"micro-batch {self.micro_batch}" if self.micro_batch else ""]
        return ", ".join(part for part in parts if part)


def write_beat(path: Path, beat: Beat) -> None:
    """Write over the file in place: no new blocks on a full disk, and closing it makes it visible over NFS."""
    line = (json.dumps(asdict(beat)).ljust(500) + "\n").encode()
    with naming(path):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(handle, line, 0)
            os.ftruncate(handle, len(line))
        finally:
            os.close(handle)


def read_beat(path: Path) -> Beat | None:
    """A rank's last beat; None if there is none, or it is being written."""
    try:
        entry = json.loads(path.read_bytes())
        return Beat(**{field.name: entry[field.name] for field in fields(Beat)})
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Source(Protocol):
    """Where beats come from."""

    def beat(self, rank: int) -> Beat | None:
        """Its newest; None if there is none."""

    def reaches(self, rank: int) -> bool:
        """Whether a beat of that rank would be seen if there were one."""


class Peers:
    """Watches the beats of some ranks.

    Args:
        source: of their beats.
        ranks: whom to watch.
    """

    def __init__(self, source: Source, ranks: Iterable[int]):
        self.source = source
        self.last: dict[int, Beat | None] = dict.fromkeys(ranks)
        self.silence = dict.fromkeys(self.last, 0.0)
        """Seconds without a new beat, counted in this watcher's own rounds; 0 for a rank whose session is over, and
        for one that nobody could see from here."""

    def look(self, elapsed: float) -> None:
        """One round, `elapsed` seconds after the last."""
        for rank, before in self.last.items():
            beat = self.source.beat(rank)
            news = beat is not None and (before is None or beat.number != before.number or beat.over)
            hidden = beat is None and before is None and not self.source.reaches(rank)
            self.silence[rank] = 0.0 if news or hidden else self.silence[rank] + elapsed
            self.last[rank] = beat or before

    def silent(self, seconds: float) -> set[int]:
        """Those that have not beaten for so long."""
        return {rank for rank, silence in self.silence.items() if silence >= seconds}

    def gone(self) -> set[int]:
        """Those whose process has died, of this machine."""
        return {rank for rank, beat in self.last.items() if beat and not beat.over and _state(beat) in GONE}

    def lost(self, limits: Limits, patience: float) -> set[int]:
        """Those that will not go on: ended by an error, dead, stopped, or silent for longer than slowness explains.

        Args:
            patience: seconds after which the death of a process is certain to be no exit that is under way.
        """
        return {rank for rank, silence in self.silence.items() if silence >= self._limit(rank, limits, patience)}

    def _limit(self, rank: int, limits: Limits, patience: float) -> float:
        beat = self.last[rank]
        if beat is None:
            return limits.silence(START)
        if beat.over:
            return 0.0 if beat.exit_code else math.inf
        state = _state(beat)
        if state in GONE:
            return patience
        return limits.timeout if state == STOPPED else limits.silence(beat.phase)


def _state(beat: Beat) -> str | None:
    """Of the rank's process; None for another machine's."""
    return state_of(beat.pid) if beat.machine == identity() else None
