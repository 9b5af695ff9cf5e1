"""This machine and its processes, as the kernel knows them."""

from __future__ import annotations

import os
import socket
import time
from functools import cache
from pathlib import Path

from pretrain.launch.parents import started

GONE = ("", "Z", "X")
"""States of a process that has ended."""
STOPPED = "T"


@cache
def identity() -> str:
    """Equal for processes that see each other in /proc: host, its boot, and the namespace of process ids."""
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    except OSError:
        parts.append(str(time.time_ns()))  # unknown: equal to no other
    return " ".join(parts)


def clock() -> float:
    """Seconds since this machine started: one clock for all its processes."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def born() -> float:
    """When this process started, by `clock`; now where the kernel does not say."""
    now, ticks = clock(), started(os.getpid())
    return min(now, ticks / os.sysconf("SC_CLK_TCK")) if ticks else now


def state_of(pid: int) -> str:
    """State of a process of this machine: R runs, S sleeps, T is stopped ...; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
