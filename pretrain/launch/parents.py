"""Which processes started this one, from /proc."""

from __future__ import annotations

import os
from pathlib import Path

LauncherChain = list[tuple[int, int]]
"""(process, its parent): what must stay as it is while the launcher lives."""


def launcher_chain(launcher: str) -> LauncherChain:
    """This process and its parent and, where that is DeepSpeed's launch.py, that one and its parent too.

    To be read first thing: a launcher that dies while the rank starts has left by the time the loop runs.

    Args:
        launcher: of RankEnvironment. A lone process has none, and may outlive its shell.
    """
    if launcher == "single":
        return []
    own = os.getpid()
    parent = parent_of(own)
    chain = [(own, parent)]
    if "deepspeed.launcher.launch" in _command_line(parent):
        chain.append((parent, parent_of(parent)))
    return chain


def parent_of(pid: int) -> int:
    """Parent process id from /proc; 0 if `pid` is gone."""
    try:
        # The command name, in parentheses, may hold spaces.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
