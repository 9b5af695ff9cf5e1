"""One rank speaks for all: the first that creates hang_SESSION_N.json on the board, which then holds the verdict."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pretrain.resilience.board import Board
from pretrain.resilience.diagnosis import Verdict
from pretrain.resilience.machine import clock, identity


class Claim:
    """Exclusive creation is atomic, also over NFS, and needs no rank in particular to be alive.

    Args:
        board: where it lies.
        session: so that nothing left by an earlier session counts, and nothing need be removed.
        since: this process's start by the machine's clock, where an earlier session may have had that name too; what
            that one said is then told by the clock, or, from another machine, by having been there from the first.
    """

    def __init__(self, board: Board, session: str, since: float | None = None):
        self.board, self.session, self.since = board, session, since
        self.number = 0
        """The claim after one whose holder died has the next number."""
        self.mine = False
        self._path: Path | None = None
        self._found = {path for place in board.places for path in place.glob(f"hang_{session}_*")} if since else set()

    @property
    def name(self) -> str:
        return f"hang_{self.session}_{self.number}.json"

    def take(self, rank: int) -> bool:
        """Become the one who speaks; False if another is."""
        if not self.mine:
            folder = self.board.folder
            if folder is None or self._there() is not None:
                return False
            path = folder / self.name
            with suppress(FileNotFoundError):
                if self._is_old(path):
                    path.unlink()
            try:
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                return False
            self.mine, self._path = True, path
            try:
                os.write(handle, json.dumps(self._own(rank)).encode())
            finally:
                os.close(handle)
        return True

    def withdraw(self) -> None:
        """It was no hang."""
        if self.mine and self._path is not None:
            self._path.unlink(missing_ok=True)
            self.mine = False

    def holder(self) -> int | None:
        """The rank that speaks; None if there is none, or its word could not be written (a full disk)."""
        return self._read().get("by")

    def is_empty(self) -> bool:
        """Whether somebody took it and could not say who."""
        path = self._there()
        try:
            return path is not None and path.stat().st_size == 0
        except OSError:
            return False

    def next(self) -> None:
        """The holder has died too."""
        self.number += 1

    def pronounce(self, rank: int, verdict: Verdict) -> None:
        if self._path is not None:
            text = json.dumps(self._own(rank) | asdict(verdict), indent=1) + "\n"
            self._path.write_text(text, encoding="utf-8")

    def verdict(self) -> dict[str, Any] | None:
        """As a mapping, as another rank has pronounced it; None if there is none yet."""
        found = self._read()
        return found if isinstance(found.get("exit_code"), int) else None

    def _own(self, rank: int) -> dict[str, Any]:
        return {"by": rank, "machine": identity(), "clock": clock()}

    def _there(self) -> Path | None:
        """The claim's file, if it is of this session."""
        for place in self.board.places:
            path = place / self.name
            if path.exists() and not self._is_old(path):
                return path
        return None

    def _is_old(self, path: Path) -> bool:
        if self.since is None:
            return False
        said = _parsed(path)
        return said["clock"] < self.since if said.get("machine") == identity() else path in self._found

    def _read(self) -> dict[str, Any]:
        path = self._there()
        return _parsed(path) if path is not None else {}


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
