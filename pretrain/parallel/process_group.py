"""Start and end the process group; keep DeepSpeed's own talk in a file a rank."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Literal

import torch
from torch import distributed as dist

from pretrain.launch.environment import RankEnvironment, export


def accelerator() -> Literal["cpu", "cuda"]:
    """What this process computes on. DS_ACCELERATOR=cpu is how DeepSpeed is kept off a machine's GPUs."""
    wanted = os.environ.get("DS_ACCELERATOR")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


@contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Send what libraries print and log inside the block to `log`, appending."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with _Talk(log) as file, redirect_stdout(file):
        yield


class _Talk(io.TextIOBase):
    """Appends to a file as far as there is room for it: what libraries say is no reason to end."""

    def __init__(self, path: Path):
        self._file = path.open("ab", buffering=0)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._file.write(text.encode(errors="backslashreplace"))
        return len(text)

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        with suppress(OSError):
            self._file.close()
        super().close()


def send_library_talk(log: Path) -> None:
    """DeepSpeed's logger and all Python warnings write to `log` instead of the terminal, from now on."""
    handler = logging.StreamHandler(_Talk(log))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.captureWarnings(True)
    for name in ("DeepSpeed", "py.warnings"):
        logger = logging.getLogger(name)
        for old in list(logger.handlers):
            logger.removeHandler(old)
        logger.addHandler(handler)
        logger.propagate = False


def start(environment: RankEnvironment, log: Path) -> None:
    """Initialise DeepSpeed's communication for this rank: NCCL on GPUs, gloo on CPUs."""
    os.environ.update(export(environment))
    with quiet(log):
        import deepspeed

        send_library_talk(log)
        # Else every first start on a CPU compiles a shared-memory all-reduce that only inference uses, for half a
        # minute, and a process killed meanwhile leaves a lock on which all later ones wait.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if accelerator() == "cuda":
            torch.cuda.set_device(environment.local_rank)
        backend = "nccl" if accelerator() == "cuda" else "gloo"
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def end() -> None:
    """Leave the group; without it, torch warns at exit."""
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.stdout.flush()
