"""A file that entries are appended to and that never has part of one: what finds no room waits in memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

from pretrain.state.files import naming

MOST_WAITING = 64 * 2**20
"""Bytes that wait at most; what comes beyond them is lost, and counted."""


class LogFile:
    """The entries of one file that are not written yet. The path is given at each writing: the folder may move.

    Args:
        lines: an entry is a line; half a line that a killed writer left is ended before the next.
        most: bytes that may wait.
    """

    def __init__(self, lines: bool, most: int = MOST_WAITING):
        self.lines, self.most = lines, most
        self.waiting: deque[bytes] = deque()
        self.lost = 0
        """Entries for which there was no room in memory either."""
        self._size = 0

    def add(self, entry: bytes) -> None:
        """Put an entry behind those that wait."""
        if self.waiting and self._size + len(entry) > self.most:
            self.lost += 1
            return
        self.waiting.append(entry)
        self._size += len(entry)

    def keep(self, wanted: Callable[[bytes], bool]) -> None:
        """Forget the waiting entries that are not wanted any more."""
        self.waiting = deque(filter(wanted, self.waiting))
        self._size = sum(map(len, self.waiting))

    def write_out(self, path: Path) -> None:
        """Write what waits, as far as there is room.

        Raises:
            OSError: an entry could not be written; it and those behind it wait on.
        """
        if not self.waiting:
            return
        with naming(path):
            handle = self._open(path)
            written = 0
            try:
                if self.lines and not _ends_a_line(handle):
                    _append(handle, b"\n")
                for entry in self.waiting:
                    _append(handle, entry)
                    written += 1
            finally:
                os.close(handle)  # on a network file system this may be what fails
                for _ in range(written):
                    self._size -= len(self.waiting.popleft())

    @staticmethod
    def _open(path: Path) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            return os.open(path, flags, 0o644)
        except FileNotFoundError:  # a folder inside the run's
            path.parent.mkdir(exist_ok=True)
            return os.open(path, flags, 0o644)


def _ends_a_line(handle: int) -> bool:
    size = os.fstat(handle).st_size
    return size == 0 or os.pread(handle, 1, size - 1) == b"\n"


def _append(handle: int, entry: bytes) -> None:
    """All of it or nothing."""
    before, rest = os.fstat(handle).st_size, memoryview(entry)
    try:
        while rest:
            rest = rest[os.write(handle, rest) :]
    except OSError:
        if os.fstat(handle).st_size == before + len(entry) - len(rest):  # else another process wrote behind it
            os.ftruncate(handle, before)
        raise
