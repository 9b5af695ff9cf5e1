"""The run's folder as its one writer sees it. Only rank 0 writes the logs; `analysis` reads them."""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from pretrain.errors import UserError
from pretrain.state.files import replace_file, replace_text

METRICS, LAYERS, EVENTS = "metrics.jsonl", "layers.jsonl", "events.jsonl"
SUMMARY, CONFIG, TOKENIZER = "summary.json", "config.yaml", "tokenizer.model"


class RunFolder:
    """Logs and lock of a run.

    Args:
        path: created if missing.
        writes: whether this process is the writer; elsewhere every method does nothing.
    """

    def __init__(self, path: Path, writes: bool):
        self.path = Path(path)
        self.writes = writes
        self._lock: TextIO | None = None
        self.checkpoints = self.path / "checkpoints"

    def acquire(self, patience: float = 10.0) -> None:
        """Become the folder's one writer; the lock goes with the process, also by kill -9.

        Args:
            patience: seconds to wait for a writer that is just ending.

        Raises:
            UserError: another process writes here.
        """
        if not self.writes:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / ".lock").open("a+")
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    self._lock.seek(0)
                    owner = self._lock.read().strip() or "another process"
                    raise UserError(
                        f"run.dir = {self.path} is in use by {owner}; end that run, or set another run.dir"
                    ) from None
                time.sleep(0.2)
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {os.uname().nodename}")
        self._lock.flush()

    def append(self, name: str, entry: dict[str, Any]) -> None:
        """One line of a .jsonl log; figures that are not finite become null, as JSON has none."""
        if self.writes:
            line = json.dumps(_finite(entry)) + "\n"
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
        """Merge figures into summary.json."""
        if not self.writes:
            return
        path = self.path / SUMMARY
        known = json.loads(path.read_text()) if path.exists() else {}
        replace_text(path, json.dumps(_finite({**known, **figures}), indent=1) + "\n")


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


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
