"""The run's folder as its one writer sees it. Only rank 0 writes the logs; `analysis` reads them.

What cannot be written (a full disk) waits in memory, is said once, and is tried again with all that is written later;
`complete` is where it must be on the disk. Nothing goes into a folder that is not the run's any more.
"""

from __future__ import annotations

import json
import os
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pretrain.command_line import say
from pretrain.errors import CheckpointError, FolderLost
from pretrain.state.files import naming, replace_file, sync
from pretrain.state.log_file import LogFile
from pretrain.state.log_mend import Steps, kind_of, mend, step_in, steps_from_json
from pretrain.state.run_files import (
    CHECKPOINTS,
    EVENTS,
    LAYERS,
    METRICS,
    SUMMARY,
    as_record,
    events,
    finite,
    json_line,
    read_summary,
)
from pretrain.training.folder_lock import GRACE, PATIENCE, FolderLock, Loss

CUT = (METRICS, LAYERS)
"""Logs of steps, which end where a checkpoint does that is gone on from."""
LEAST_ROOM = 2**20
"""Bytes without which no session begins: config, tokenizer, logs and heartbeats take a part of them at once."""


class RunFolder:
    """Logs and lock of a run.

    Args:
        path: created if missing.
        writes: whether this process is the writer; elsewhere every method does nothing.
    """

    def __init__(self, path: Path, writes: bool):
        self.path = Path(path)
        self.writes = writes
        self.checkpoints = self.path / CHECKPOINTS
        self._lock = FolderLock()
        self._logs: dict[str, LogFile] = {}
        self._files: dict[str, bytes] = {}
        """Name -> content of files that are not written yet."""
        self._unsynced: set[str] = set()
        self._logged: dict[str, dict[str, Steps]] = {}
        """Log -> kind of line -> steps that it has."""
        self._step = 0
        self._waits = False
        """Whether something has been said to wait."""
        self._busy = threading.RLock()  # a save's thread writes too

    # --- whose folder it is

    def acquire(self, grace: float = GRACE, patience: float = PATIENCE) -> None:
        """Become the folder's one writer, if not yet; the lock goes with the process, also by kill -9.

        Args:
            grace: seconds to wait for a writer that is at work.
            patience: seconds to wait for one that has said that it is ending.

        Raises:
            UserError: another process writes here.
        """
        if self.writes and not self._lock.held:
            self._lock.take(self.path, grace, patience)

    def release(self) -> None:
        """Let the next writer in; a session's end does it by itself."""
        self._lock.release()

    def ending(self) -> None:
        """Say that this writer is ending, so that the next one waits; may be called from a signal handler or thread."""
        self._lock.ending()

    def loss(self) -> Loss | None:
        """Why run.dir is not this session's folder any more; None if it is."""
        return self._lock.loss(self.path) if self.writes else None

    def check(self) -> None:
        """Raises FolderLost: run.dir is another folder now."""
        if loss := self.loss():
            raise FolderLost(f"run.dir = {self.path} {loss.reason}")

    def follow(self, path: Path) -> None:
        """Go on writing where the folder is now; on every rank."""
        self.path, self.checkpoints = path, path / CHECKPOINTS

    def check_room(self) -> None:
        """Raises OSError: a session that began here could not even write its logs."""
        if not self.writes:
            return
        for path in (self.path / name for name in (*CUT, EVENTS)):
            if path.exists():
                os.close(os.open(path, os.O_RDWR | os.O_APPEND))
        probe = self.path / ".room"
        with naming(self.path):
            handle = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                rest = memoryview(bytes(LEAST_ROOM))
                while rest:
                    rest = rest[os.write(handle, rest) :]
            finally:
                os.close(handle)
                probe.unlink(missing_ok=True)

    # --- writing

    def append(self, name: str, entry: dict[str, Any]) -> None:
        """One line of a .jsonl log."""
        if not self.writes:
            return
        with self._busy:
            self._step = entry.get("step", self._step)
            if name in CUT:
                self._logged.setdefault(name, {}).setdefault(kind_of(entry), Steps()).add(self._step)
            self.append_bytes(name, json_line(entry).encode())

    def append_bytes(self, name: str, entry: bytes) -> None:
        """One entry of a file, which may lie in a folder of the run's."""
        if self.writes:
            with self._busy:
                self._log(name).add(entry)
                self._try_to_write()

    def event(self, event: str, step: int, **fields: Any) -> None:
        """One line of events.jsonl."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.append(EVENTS, {"time": now, "step": step, "event": event, **fields})

    def events(self) -> list[dict[str, Any]]:
        """What events.jsonl tells, and what waits to be written to it."""
        with self._busy:
            waiting = map(as_record, self._log(EVENTS).waiting)
            return [*events(self.path), *(record for record in waiting if record is not None)]

    def alert(self, step: int, reason: str) -> None:
        """An event and a line on standard error, of something that does not end the session."""
        if self.writes:
            self.event("alert", step, reason=reason)
            say(f"{self.path}: {reason}")

    def write(self, name: str, content: str | bytes) -> None:
        """Put a file into the folder atomically."""
        if self.writes:
            with self._busy:
                self._files[name] = content.encode() if isinstance(content, str) else content
                self._try_to_write()

    def update_summary(self, figures: dict[str, Any]) -> None:
        """Merge figures into summary.json; a damaged one is written anew."""
        if not self.writes:
            return
        with self._busy:
            try:
                before = json.loads(self._files[SUMMARY]) if SUMMARY in self._files else read_summary(self.path)
            except CheckpointError:
                before = {}
            self.write(SUMMARY, json.dumps(finite({**before, **figures}), indent=1) + "\n")

    def complete(self) -> None:
        """All that was written before is on the disk when this returns, so that a checkpoint may rely on it.

        Raises:
            OSError: it cannot be written.
            FolderLost: run.dir is another folder now.
        """
        if not self.writes:
            return
        self.check()
        with self._busy:
            self._write_all()
            names, self._unsynced = sorted(self._unsynced), set()
        try:
            while names:  # training writes on meanwhile
                with suppress(FileNotFoundError):
                    sync(self.path / names[-1])
                names.pop()
        finally:
            with self._busy:
                self._unsynced.update(names)

    def _log(self, name: str) -> LogFile:
        return self._logs.setdefault(name, LogFile(lines=name.endswith(".jsonl")))

    def _try_to_write(self) -> None:
        """What cannot be written waits, which is said once; who does not hold the folder has no later time for it."""
        try:
            self._write_all()
        except OSError as error:
            if not self._lock.held:
                raise
            if not self._waits:
                self._waits = True
                self.alert(self._step, f"{error}; it waits in memory, and training goes on")

    def _write_all(self) -> None:
        """Write what waits. Raises OSError: the first thing that could not be written waits on, and maybe others."""
        failed: OSError | None = None
        here = self._lock.here(self.path)
        for name in list(self._files):
            try:
                replace_file(here / name, self._files[name])
                del self._files[name]
            except OSError as error:
                failed = failed or error
        for name, log in self._logs.items():
            self._unsynced |= {name} if log.waiting else set()
            try:
                log.write_out(here / name)
            except OSError as error:
                failed = failed or error
        if failed:
            raise failed
        if self._waits:
            self._waits = False
            lost = "".join(f"; {log.lost} entries of {name} are lost" for name, log in self._logs.items() if log.lost)
            self.alert(self._step, f"there is room again: what waited in memory is written{lost}")

    # --- going on from a checkpoint

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint knows of the logs up to it."""
        return {
            name: {kind: [list(entry) for entry in steps.ranges] for kind, steps in kinds.items()}
            for name, kinds in self._logged.items()
        }

    def load_state_dict(self, state: Any) -> None:
        """Before `cut_logs`; what is not of that form says nothing."""
        known = state if isinstance(state, dict) else {}
        self._logged = {name: steps_from_json(known.get(name)) for name in CUT}

    def cut_logs(self, step: int) -> None:
        """Remove metrics and layer samples beyond `step`: they will be written again. Damage before it is left out and
        said, with the steps that are missing then.

        Raises:
            OSError: a damaged log cannot be written anew.
        """
        if not self.writes:
            return
        with self._busy:
            for name in CUT:
                here, log = self._lock.here(self.path), self._log(name)
                with suppress(OSError):
                    log.write_out(here / name)
                log.keep(lambda line: (step_in(as_record(line)) or 0) <= step)
                told, self._logged[name] = mend(here / name, step, self._logged.get(name, {}), log.waiting)
                if told and step:
                    self.alert(step, f"{name}, up to step {step}, from which this run goes on: {told}")
