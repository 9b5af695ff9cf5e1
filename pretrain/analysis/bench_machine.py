"""The machine under a benchmark: what it is, what a process takes of it, and what others take meanwhile."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import pretrain


def machine() -> dict[str, Any]:
    """What decides the times beside the code: processor, cores, memory, versions."""
    described = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "deepspeed": version("deepspeed"),
        "transformers": version("transformers"),
        "kilolayer": pretrain.__version__,
    }
    if torch.cuda.is_available():
        described["gpu"] = torch.cuda.get_device_name()
    return described


def write_figures(path: Path, figures: dict[str, Any]) -> None:
    """A benchmark's figures and the machine, as JSON."""
    path.write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_resident_bytes() -> int:
    """The most memory that this process has had resident."""
    try:
        # Not ru_maxrss where it can be helped: a process inherits its parent's there.
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_bytes() -> int:
    """Memory of this process that is resident now; its peak where that is not told."""
    try:
        return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return peak_resident_bytes()


def forget_peak() -> bool:
    """Let `peak_resident_bytes` count from now on; False where the system does not let us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc_pid_clear_refs(5)
    except OSError:
        return False
    return True


def busy_seconds() -> float | None:
    """CPU seconds that all cores together have worked since the start of the machine; None where it is not told.

    Of /proc/stat, see proc_stat(5): user, nice, system, irq, softirq, and steal (a virtual machine's neighbours).
    """
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        user, nice, system, _idle, _wait, irq, soft, steal = map(int, fields[:8])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
