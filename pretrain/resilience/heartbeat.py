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
from typing import Literal

from pretrain.resilience.board import Board
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


def beat_name(rank: int, key: str = "") -> str:
    """Name of a rank's file; with the launch's key until the ranks have met, as another session may be at work in the
    run's folder, which this one does not hold yet."""
    return f"start_{key}_rank_{rank}.json" if key else f"heartbeat_rank_{rank}.json"


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


class Peers:
    """Watches the beats of some ranks.

    A session's own name comes with the process group. Before, a launch is known by a key that an earlier one may have
    had too, so that beats which are left over must be told from those of now: on this machine by the clock, elsewhere
    by whether they change.

    Args:
        board: where beats lie.
        ranks: whom to watch.
        session: beats of other sessions are left-overs.
        since: this process's start by the machine's clock, while `session` is a mere key; None where it is unique.
    """

    def __init__(self, board: Board, ranks: Iterable[int], session: str, since: float | None = None):
        self.board, self.session, self.since = board, session, since
        self.last: dict[int, Beat | None] = dict.fromkeys(ranks)
        self.silence = dict.fromkeys(self.last, 0.0)
        """Seconds without a new beat, counted in this watcher's own rounds; 0 for a rank whose session is over."""
        self._first: dict[int, Beat | None] = {}
        """What the first look found, of ranks of other machines perhaps a left-over."""

    def look(self, elapsed: float) -> None:
        """One round, `elapsed` seconds after the last."""
        for rank, before in self.last.items():
            beat = self._read(rank)
            if beat is not None and self._left_over(beat):
                beat = None
            news = beat is not None and (before is None or beat.number != before.number or beat.over)
            self.silence[rank] = 0.0 if news else self.silence[rank] + elapsed
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

    def _read(self, rank: int) -> Beat | None:
        names = [beat_name(rank)] if self.since is None else [beat_name(rank), beat_name(rank, self.session)]
        found = [read_beat(place / name) for place in self.board.places for name in names]
        ours = [beat for beat in found if beat is not None and self._is_ours(beat)]
        return max(ours, key=lambda beat: beat.clock, default=None)

    def _is_ours(self, beat: Beat) -> bool:
        """By its session's name; a rank that knows the session's own name already has it behind the key."""
        own = self.session
        return beat.session == own or (self.since is not None and beat.session.startswith(f"{own}_"))

    def _left_over(self, beat: Beat) -> bool:
        if self.since is None:
            return False
        if beat.machine == identity():
            return beat.clock < self.since
        first = self._first.setdefault(beat.rank, beat)
        return first is not None and (first.pid, first.number) == (beat.pid, beat.number)


def _state(beat: Beat) -> str | None:
    """Of the rank's process; None for another machine's."""
    return state_of(beat.pid) if beat.machine == identity() else None
