"""One rank speaks for all: the first that creates hang_SESSION_N.json on the board, which then holds the verdict."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from pretrain.resilience.board import Board
from pretrain.resilience.diagnosis import Verdict
from pretrain.resilience.machine import identity
from pretrain.resilience.sources import Launch, Session


class Claim:
    """Exclusive creation is atomic, also over NFS, and needs no rank in particular to be alive.

    Args:
        board: where it lies.
        source: its name stands in the files, and it knows whose word is that of another session.
    """

    def __init__(self, board: Board, source: Session | Launch):
        self.board, self.source = board, source
        self.number = 0
        """The claim after one whose holder died has the next number."""
        self.mine = False
        self._path: Path | None = None

    def take(self, rank: int) -> bool:
        """Become the one who speaks; False if another is."""
        if not self.mine:
            number, there = self._slot()
            folder = self.board.folder
            if folder is None or there is not None:
                return False
            path = folder / self._name(number)
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
        path = self._slot()[1]
        try:
            return path is not None and path.stat().st_size == 0
        except OSError:
            return False

    def next(self) -> None:
        """The holder has died too."""
        self.number = self._slot()[0] + 1

    def pronounce(self, rank: int, verdict: Verdict) -> None:
        if self._path is not None:
            text = json.dumps(self._own(rank) | asdict(verdict), indent=1) + "\n"
            self._path.write_text(text, encoding="utf-8")

    def verdict(self) -> dict[str, Any] | None:
        """As a mapping, as another rank has pronounced it; None if there is none yet."""
        found = self._read()
        return found if isinstance(found.get("exit_code"), int) else None

    def _own(self, rank: int) -> dict[str, Any]:
        return {"by": rank, "pid": os.getpid(), "machine": identity()}

    def _name(self, number: int) -> str:
        return f"hang_{self.source.name}_{number}.json"

    def _slot(self) -> tuple[int, Path | None]:
        """Number and file of the claim; None if nobody has it. Numbers that another launch has taken are passed by."""
        for number in count(self.number):
            paths = [path for place in self.board.places if (path := place / self._name(number)).exists()]
            for path in paths:
                said = _parsed(path)
                if not said or self.source.knows(said):
                    return number, path
            if not paths:
                return number, None
        raise AssertionError("numbers do not end")

    def _read(self) -> dict[str, Any]:
        path = self._slot()[1]
        return _parsed(path) if path is not None else {}


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
