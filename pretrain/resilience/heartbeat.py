"""Heartbeats: a small file a rank in RUN/logs, by which ranks see each other without any collective.

Only changes of content are compared, as they are seen here: clocks of other hosts do not matter.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

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


def beat_file(logs: Path, rank: int) -> Path:
    return logs / f"heartbeat_rank_{rank}.json"


def write_beat(logs: Path, beat: Beat) -> None:
    """Write over the file in place: no new blocks on a full disk, and closing it makes it visible over NFS."""
    line = (json.dumps(asdict(beat)).ljust(500) + "\n").encode()
    path = beat_file(logs, beat.rank)
    with naming(path):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(handle, line, 0)
            os.ftruncate(handle, len(line))
        finally:
            os.close(handle)


def read_beat(logs: Path, rank: int, session: str) -> Beat | None:
    """A rank's last beat; None if there is none of this session, or it is being written."""
    try:
        entry = json.loads(beat_file(logs, rank).read_bytes())
        beat = Beat(**{field.name: entry[field.name] for field in fields(Beat)})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return beat if beat.session == session else None


def process_gone(beat: Beat, host: str) -> bool:
    """Whether the rank's process has died; known only for those of this host."""
    if beat.host != host:
        return False
    try:
        state = Path(f"/proc/{beat.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


class Peers:
    """Watches the beats of some ranks.

    Args:
        logs: RUN/logs.
        ranks: whom to watch.
        session: beats of other sessions are left-overs.
    """

    def __init__(self, logs: Path, ranks: Iterable[int], session: str):
        self.logs, self.session = logs, session
        self.last: dict[int, Beat | None] = dict.fromkeys(ranks)
        self.silence = dict.fromkeys(self.last, 0.0)
        """Seconds without a new beat, counted in this watcher's own rounds; 0 for a rank whose session is over."""

    def look(self, elapsed: float) -> None:
        """One round, `elapsed` seconds after the last."""
        for rank, before in self.last.items():
            beat = read_beat(self.logs, rank, self.session)
            news = beat is not None and (before is None or beat.number != before.number or beat.over)
            self.silence[rank] = 0.0 if news else self.silence[rank] + elapsed
            self.last[rank] = beat or before

    def silent(self, seconds: float) -> set[int]:
        """Those that have not beaten for so long."""
        return {rank for rank, silence in self.silence.items() if silence >= seconds}

    def gone(self, host: str) -> set[int]:
        """Those whose process has died, of this host."""
        return {rank for rank, beat in self.last.items() if beat and not beat.over and process_gone(beat, host)}
