"""Whose beats and claims count: those of a session whose ranks have met, or of a launch whose ranks have not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pretrain.resilience.board import Board
from pretrain.resilience.heartbeat import Beat, read_beat
from pretrain.resilience.machine import identity


def heartbeat_name(rank: int) -> str:
    """Of the ranks that have met."""
    return f"heartbeat_rank_{rank}.json"


def start_name(rank: int, key: str) -> str:
    """In RUN/logs, where another session may be at work, which this one does not hold yet."""
    return f"start_{key}_rank_{rank}.json"


class Session:
    """Of ranks that have met: its name is no other's.

    Args:
        board: where its word lies.
        rank: this one.
        name: what they have agreed on.
    """

    def __init__(self, board: Board, rank: int, name: str):
        self.board, self.rank, self.name = board, rank, name

    @property
    def path(self) -> Path | None:
        """Where this rank writes its own beat; None if nowhere yet."""
        folder = self.board.folder
        return folder / heartbeat_name(self.rank) if folder is not None else None

    def beat(self, rank: int) -> Beat | None:
        found = (read_beat(place / heartbeat_name(rank)) for place in self.board.places)
        ours = [beat for beat in found if beat is not None and beat.session == self.name]
        return max(ours, key=lambda beat: beat.clock, default=None)

    def reaches(self, rank: int) -> bool:
        return True

    def knows(self, said: dict[str, Any]) -> bool:
        """Whether a claim of that name is this session's."""
        return True


class Launch:
    """Of ranks that have not met. They know their launch by a key, which others may have too if it was begun by hand.

    Of several processes of this machine that say to be rank N, that one is meant whose start is nearest to this one's,
    unless another that says to be this one's rank is nearer to it. What was said before this process began is left
    over from an earlier launch; from another machine it is as long as it does not change.

    Args:
        board: where their word lies.
        rank: this one.
        key: of `launch_key`.
        born: this process's start, by the machine's clock.
        pid: this process.
    """

    def __init__(self, board: Board, rank: int, key: str, born: float, pid: int | None = None):
        self.board, self.rank, self.name, self.born = board, rank, key, born
        self.pid = os.getpid() if pid is None else pid
        self._first: dict[int, Beat] = {}
        """What was found first of ranks of other machines, perhaps left over."""

    @property
    def path(self) -> Path | None:
        """Where this rank writes its own beat; None if nowhere yet."""
        folder = self.board.folder
        if folder is None:
            return None
        return folder / (self.early_name if folder == self.board.early else start_name(self.rank, self.name))

    @property
    def early_name(self) -> str:
        """Of this process, in the folder of the machine."""
        return f"rank_{self.rank}_process_{self.pid}.json"

    def beat(self, rank: int) -> Beat | None:
        found = self._all(rank)
        here = [beat for beat in found if beat.machine == identity() and beat.clock >= self.born]
        if here:
            meant = min(here, key=lambda beat: (abs(beat.born - self.born), -beat.clock))
            return meant if self._is_kin(meant) else None
        elsewhere = [beat for beat in found if beat.machine != identity() and self.board.met]
        newest = max(elsewhere, key=lambda beat: beat.clock, default=None)
        if newest is None:
            return None
        first = self._first.setdefault(rank, newest)
        return newest if (first.pid, first.number) != (newest.pid, newest.number) else None

    def reaches(self, rank: int) -> bool:
        return rank in self.board.near or self.board.shared

    def knows(self, said: dict[str, Any]) -> bool:
        """Whether a claim is by a process that has been seen beating as that rank of this launch."""
        if said.get("by") == self.rank:
            return said.get("pid") == self.pid
        beat = self.beat(said["by"]) if isinstance(said.get("by"), int) else None
        return beat is not None and (beat.pid, beat.machine) == (said.get("pid"), said.get("machine"))

    def _is_kin(self, beat: Beat) -> bool:
        rivals = [rival for rival in self._all(self.rank) if rival.machine == identity() and rival.pid != self.pid]
        distance = abs(beat.born - self.born)
        return all(rival.clock < beat.born or abs(rival.born - beat.born) >= distance for rival in rivals)

    def _all(self, rank: int) -> list[Beat]:
        """Of whoever says to be that rank; one that has met the others already knows the session's own name."""
        paths = [self.board.early] if self.board.early is not None else []
        paths = [path for early in paths for path in early.glob(f"rank_{rank}_process_*.json")]
        if self.board.logs is not None:
            paths += [self.board.logs / name for name in (start_name(rank, self.name), heartbeat_name(rank))]
        beats = [beat for beat in map(read_beat, paths) if beat is not None]
        return [beat for beat in beats if beat.session == self.name or beat.session.startswith(f"{self.name}_")]
