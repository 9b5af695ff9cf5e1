"""Single keys from the terminal while something else is shown."""

from __future__ import annotations

import contextlib
import select
import sys
import time
from collections.abc import Callable, Iterator

WaitForKey = Callable[[float], str]
"""Waits so many seconds; the key that was pressed, or "" if none was."""


@contextlib.contextmanager
def keys() -> Iterator[WaitForKey]:
    """Keys as they are pressed, without Enter; where standard input is no terminal, none ever comes."""
    try:
        import termios
        import tty
    except ImportError:  # no POSIX
        yield _sleep
        return
    if not sys.stdin.isatty():
        yield _sleep
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)  # Ctrl-C still interrupts
        yield _wait
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _sleep(seconds: float) -> str:
    time.sleep(seconds)
    return ""


def _wait(seconds: float) -> str:
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return sys.stdin.read(1) if ready else ""
