"""Which processes started this one, from /proc."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

LauncherChain = list[tuple[int, int]]
"""(process, its parent): what must stay as it is while the launcher lives."""

OF_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "CROSS_SIZE", "PMI_RANK")
"""Variables that torchrun's agent, DeepSpeed's launch.py and hydra set in the processes they start, and lack
themselves."""


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


def launching_process(environ: Mapping[str, str]) -> int:
    """The one on this machine that started this rank and the others here, maybe through scripts in between; 0 if it
    is none that is known, or cannot be told.

    Args:
        environ: this process's variables.
    """
    name = next((name for name in OF_LAUNCHERS if name in environ), None)
    pid = parent_of(os.getpid())
    while name is not None and pid > 0:
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # it runs as another user
            return 0
        if not any(variable.startswith(f"{name}=".encode()) for variable in variables):
            return pid
        pid = parent_of(pid)
    return 0


def started(pid: int) -> int:
    """When a process of this machine started, in the kernel's ticks since the boot; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
