"""The run's folder as its one writer sees it. Only rank 0 writes the logs; `analysis` reads them."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pretrain.errors import CheckpointError, UserError
from pretrain.state.files import replace_file, replace_text
from pretrain.state.run_files import CHECKPOINTS, EVENTS, LAYERS, METRICS, json_line, merge_summary, write_summary

GRACE = 3.0
"""Seconds that a writer at work is waited for: a killed one needs a moment to be gone, and one whose launcher died says
within about a second that it is ending. Its step may take longer than anybody wants to wait."""
PATIENCE = 600.0
"""Seconds that a writer which is ending is waited for: it finishes its step and saves. An orphan gives up as late."""
ENDING = ", which is ending"


class RunFolder:
    """Logs and lock of a run.

    Args:
        path: created if missing.
        writes: whether this process is the writer; elsewhere every method does nothing.
    """

    def __init__(self, path: Path, writes: bool):
        self.path = Path(path)
        self.writes = writes
        self._lock: int | None = None
        self.checkpoints = self.path / CHECKPOINTS

    def acquire(self, grace: float = GRACE, patience: float = PATIENCE) -> None:
        """Become the folder's one writer, if not yet; the lock goes with the process, also by kill -9.

        Args:
            grace: seconds to wait for a writer that is at work.
            patience: seconds to wait for one that has said that it is ending.

        Raises:
            UserError: another process writes here.
        """
        if not self.writes or self._lock is not None:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        start, told = time.monotonic(), False
        while not _take(lock):
            waited, owner = time.monotonic() - start, _text(lock) or "another process"
            if waited > (patience if owner.endswith(ENDING) else grace):
                os.close(lock)
                raise UserError(f"run.dir = {self.path} is in use by {owner}; end that run, or set another run.dir")
            if waited > grace and not told:
                print(f"run.dir = {self.path}: waiting for {owner}", file=sys.stderr, flush=True)
                told = True
            time.sleep(0.2)
        os.ftruncate(lock, 0)
        os.pwrite(lock, _owner().encode(), 0)
        self._lock = lock

    def release(self) -> None:
        """Let the next writer in; a session's end does it by itself."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def ending(self) -> None:
        """Say that this writer is ending, so that the next one waits; may be called from a signal handler or thread."""
        if self._lock is not None:
            os.pwrite(self._lock, (_owner() + ENDING).encode(), 0)

    def append(self, name: str, entry: dict[str, Any]) -> None:
        """One line of a .jsonl log."""
        if self.writes:
            line = json_line(entry)
            with (self.path / name).open("a+b") as file:
                if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                    line = "\n" + line  # half a line of a killed writer ends here
                file.write(line.encode())

    def event(self, event: str, step: int, **fields: Any) -> None:
        """One line of events.jsonl."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.append(EVENTS, {"time": now, "step": step, "event": event, **fields})

    def cut_logs(self, step: int) -> None:
        """Remove metrics and layer samples beyond `step`: they will be written again."""
        if not self.writes:
            return
        for name in (METRICS, LAYERS):
            path = self.path / name
            if path.exists():
                replace_text(path, "".join(line for line in _whole_lines(path) if json.loads(line)["step"] <= step))

    def write(self, name: str, content: str | bytes) -> None:
        """Put a file into the folder atomically."""
        if self.writes:
            replace_file(self.path / name, content)

    def update_summary(self, figures: dict[str, Any]) -> None:
        """Merge figures into summary.json; a damaged one is written anew."""
        if not self.writes:
            return
        try:
            merge_summary(self.path, figures)
        except CheckpointError:
            write_summary(self.path, figures)


def _take(handle: int) -> bool:
    """Take the lock if it is free."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _text(handle: int) -> str:
    return os.pread(handle, 1000, 0).decode(errors="replace")


def _owner() -> str:
    return f"process {os.getpid()} on {os.uname().nodename}"


def _whole_lines(path: Path) -> list[str]:
    """Lines that are complete JSON; a killed run may leave half a line."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            json.loads(line)
        except ValueError:
            continue
        lines.append(line if line.endswith("\n") else line + "\n")
    return lines
