"""The lock of a run's folder, and whether the folder that run.dir names is still the one that was locked."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pretrain.command_line import say
from pretrain.errors import UserError

LOCK = ".lock"
GRACE = 3.0
"""Seconds that a writer at work is waited for: a killed one needs a moment to be gone, and one whose launcher died says
within about a second that it is ending. Its step may take longer than anybody wants to wait."""
PATIENCE = 600.0
"""Seconds that a writer which is ending is waited for: it finishes its step and saves. An orphan gives up as late."""
ENDING = ", which is ending"


@dataclass(frozen=True)
class Loss:
    """Why run.dir is not this session's folder any more, and where that is now; None: nowhere it may write to."""

    reason: str
    place: Path | None


class FolderLock:
    """Of one writer; it goes with the process, also by kill -9."""

    def __init__(self) -> None:
        self._lock: int | None = None
        self._folder: int | None = None
        self._looking = threading.Lock()  # a save's thread looks too: of two new lock files one would be a stranger's

    @property
    def held(self) -> bool:
        return self._lock is not None

    def take(self, path: Path, grace: float, patience: float) -> None:
        """Become the one writer of the folder `path`, which is created if missing.

        Args:
            path: named by run.dir.
            grace: seconds to wait for a writer that is at work.
            patience: seconds to wait for one that has said that it is ending.

        Raises:
            UserError: another process writes here.
        """
        lock, start, told = _open(path), time.monotonic(), False
        while not (_take(lock) and _is_at(lock, path / LOCK)):
            if not _is_at(lock, path / LOCK):  # the folder was moved aside meanwhile
                os.close(lock)
                lock = _open(path)
                continue
            waited, owner = time.monotonic() - start, _text(lock) or "another process"
            if waited > (patience if owner.endswith(ENDING) else grace):
                os.close(lock)
                raise UserError(f"run.dir = {path} is in use by {owner}; end that run, or set another run.dir")
            if waited > grace and not told:
                say(f"run.dir = {path}: waiting for {owner}")
                told = True
            time.sleep(0.2)
        self._lock, self._folder = lock, os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        _sign(lock, _owner())

    def release(self) -> None:
        """Let the next writer in."""
        for handle in (self._lock, self._folder):
            if handle is not None:
                os.close(handle)
        self._lock = self._folder = None

    def ending(self) -> None:
        """Say that this writer is ending; may be called from a signal handler or thread."""
        if self._lock is not None:
            _sign(self._lock, _owner() + ENDING)

    def loss(self, path: Path) -> Loss | None:
        """Whether somebody else may write to `path`, or nobody; None if it is still this writer's.

        A lock file that was removed is made again, if nobody has been quicker.
        """
        with self._looking:
            if self._lock is None or self._folder is None or _is_at(self._lock, path / LOCK):
                return None
            if not _is_at(self._folder, path):
                place = self._place()
                return Loss(f"was moved to {place}" if place else "was removed, or moved out of sight", place)
            try:
                lock = _open(path)
            except OSError:  # a full disk; nobody else can have it either
                return None
            if not _take(lock):
                owner = _text(lock) or "another process"
                os.close(lock)
                return Loss(f"is in use by {owner} as well, since its {LOCK} was removed", None)
            os.close(self._lock)
            self._lock = lock
            _sign(lock, _owner())
            return None

    def here(self, path: Path) -> Path:
        """Where the folder is that was locked as `path`; `path` itself where none is.

        Raises:
            OSError: it is nowhere to be found.
        """
        if self._folder is None or _is_at(self._folder, path):
            return path
        place = self._place()
        if place is None:
            raise OSError(errno.ESTALE, "the run's folder is not there any more", str(path))
        return place

    def _place(self) -> Path | None:
        """Where the locked folder is, whatever it is called now; None if it is gone, or the system cannot tell."""
        try:
            place = Path(f"/proc/self/fd/{self._folder}").readlink()
        except OSError:
            return None
        return place if self._folder is not None and _is_at(self._folder, place) else None


def _open(path: Path) -> int:
    path.mkdir(parents=True, exist_ok=True)
    return os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)


def _take(handle: int) -> bool:
    """Take the lock if it is free."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file or folder is what `path` names; a file system that does not answer says nothing else."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        return error.errno not in (errno.ESTALE, errno.ELOOP)


def _sign(handle: int, owner: str) -> None:
    """Write who holds the lock; on a full disk the lock holds without."""
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, owner.encode(), 0)


def _text(handle: int) -> str:
    return os.pread(handle, 1000, 0).decode(errors="replace")


def _owner() -> str:
    return f"process {os.getpid()} on {os.uname().nodename}"
