"""Standard output and error whose reader may go away: training must not end because nobody listens any more.

A terminal that is closed answers writes with EIO, a pipe to a `tee` that Ctrl-C has ended with EPIPE, a log on a full
disk with ENOSPC. A run must then still be able to finish its step and save.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

GONE = (errno.EIO, errno.EPIPE)


class _Outliving(io.FileIO):
    """A file that takes what cannot be written any more for written."""

    def write(self, data: Any) -> int:
        try:
            written = super().write(data)
            return len(data) if written is None else written  # None: nobody reads a pipe that does not wait
        except OSError as error:
            if error.errno in GONE:  # for what libraries write past Python, too
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self.fileno())
                os.close(null)
            return len(data)


def outlive_readers() -> None:
    """From now on a failing write to sys.stdout or sys.stderr is lost in silence."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        before = getattr(sys, name)
        if before is None:  # started with the descriptor closed
            continue
        before.flush()
        buffer = io.BufferedWriter(_Outliving(number, "w", closefd=False))
        lines = before.line_buffering or number == 2
        stream = io.TextIOWrapper(buffer, encoding=before.encoding, errors=before.errors, line_buffering=lines)
        setattr(sys, name, stream)
