"""One rank speaks for all: the first that creates RUN/logs/hang_SESSION_N.json, which then holds the verdict."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from pretrain.resilience.diagnosis import Verdict


class Claim:
    """Exclusive creation is atomic, also over NFS, and needs no rank in particular to be alive.

    Args:
        logs: RUN/logs.
        session: so that nothing left by an earlier session counts, and nothing need be removed.
    """

    def __init__(self, logs: Path, session: str):
        self.logs, self.session = logs, session
        self.number = 0
        """The claim after one whose holder died has the next number."""
        self.mine = False

    @property
    def path(self) -> Path:
        return self.logs / f"hang_{self.session}_{self.number}.json"

    def take(self, rank: int) -> bool:
        """Become the one who speaks; False if another is."""
        if not self.mine:
            try:
                handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                return False
            self.mine = True
            try:
                os.write(handle, json.dumps({"by": rank}).encode())
            finally:
                os.close(handle)
        return True

    def withdraw(self) -> None:
        """It was no hang."""
        if self.mine:
            self.path.unlink(missing_ok=True)
            self.mine = False

    def holder(self) -> int | None:
        """The rank that speaks; None if there is none, or its word could not be written (a full disk)."""
        return self._read().get("by")

    def is_empty(self) -> bool:
        """Whether somebody took it and could not say who."""
        try:
            return self.path.stat().st_size == 0
        except OSError:
            return False

    def next(self) -> None:
        """The holder has died too."""
        self.number += 1

    def pronounce(self, rank: int, verdict: Verdict) -> None:
        self.path.write_text(json.dumps({"by": rank, **asdict(verdict)}, indent=1) + "\n", encoding="utf-8")

    def exit_code(self) -> int | None:
        """Of the verdict; None if there is none yet."""
        return self._read().get("exit_code")

    def _read(self) -> dict[str, int]:
        try:
            return json.loads(self.path.read_bytes())
        except (OSError, ValueError):
            return {}
