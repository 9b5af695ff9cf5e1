"""Start and end the process group; keep DeepSpeed's own talk in a file a rank."""

from __future__ import annotations

import codecs
import io
import locale
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
from torch import distributed as dist

from pretrain.errors import DeviceMissing, RanksMissing, UserError
from pretrain.launch.environment import RankEnvironment, export
from pretrain.launch.meeting import ask, open_door, receive
from pretrain.launch.mpi import OPEN_MPI
from pretrain.launch.place import LOOPBACK

ACCELERATOR = "DS_ACCELERATOR"


def accelerator() -> Literal["cpu", "cuda"]:
    """What this process computes on. DS_ACCELERATOR=cpu is how DeepSpeed is kept off a machine's GPUs.

    Raises:
        UserError: DS_ACCELERATOR asks for something else than a CPU, or a GPU that is there.
    """
    wanted = os.environ.get(ACCELERATOR)
    if wanted not in (None, "cpu", "cuda"):
        raise UserError(f"{ACCELERATOR}={wanted!r} is not supported: set cpu or cuda, or unset it")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{ACCELERATOR}=cuda, but torch finds no GPU on {os.uname().nodename}: unset it, or set cpu")
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


def check_place(environment: RankEnvironment) -> None:
    """Look early at what `start` will need: a port for rank 0, and a GPU for each rank where there are any.

    Raises:
        UserError: one is missing, or torch cannot run in this locale.
    """
    if codecs.lookup(locale.getpreferredencoding(False)).name == "ascii":
        raise UserError(
            "this locale knows ASCII only, and torch's own files hold more; set LC_ALL=C.UTF-8 and unset PYTHONUTF8"
        )
    if accelerator() == "cuda":
        with_device(environment, torch.cuda.device_count())
    if is_host(environment):
        open_door(environment).close()


def start(environment: RankEnvironment, log: Path) -> None:
    """Initialise DeepSpeed's communication for this rank: NCCL on GPUs, gloo on CPUs.

    Raises:
        UserError: the port that was stated is in use, or there is no GPU for this rank.
        RanksMissing: the processes do not find each other.
    """
    device = accelerator()
    place = with_device(environment, torch.cuda.device_count()) if device == "cuda" else environment
    door = open_door(place) if is_host(place) else None
    os.environ.update(export(place))
    # DeepSpeed would hold it against LOCAL_RANK, which an inner launcher may have numbered in its own way.
    os.environ.pop(OPEN_MPI.local_rank, None)
    with quiet(log):
        import deepspeed

        send_library_talk(log)
        # Else every first start on a CPU compiles a shared-memory all-reduce that only inference uses, for half a
        # minute, and a process killed meanwhile leaves a lock on which all later ones wait.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if device == "cuda":
            torch.cuda.set_device(place.local_rank)
        backend = "nccl" if device == "cuda" else "gloo"
        timeout = deepspeed.constants.default_pg_timeout  # DEEPSPEED_TIMEOUT minutes
        if not place.hosted:
            store = meet(place, door, timeout)
            dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world_size, timeout=timeout)
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def is_host(place: RankEnvironment) -> bool:
    """Whether this rank is to wait for others at the known port."""
    return place.rank == 0 and place.world_size > 1 and not place.hosted


def meet(place: RankEnvironment, door: socket.socket | None, timeout: timedelta) -> dist.Store:
    """The store over which the ranks set up their connections: rank 0 holds it, at a port that was free.

    Args:
        door: where rank 0 waits for the others.
        timeout: for the others to come, and for each use of the store.
    """
    if place.rank == 0:
        store = dist.TCPStore(LOOPBACK, 0, place.world_size, True, timeout, wait_for_workers=False)
        if door is not None:
            receive(door, place, store.port, timeout.total_seconds())
        return store
    port = ask(place, timeout.total_seconds())
    try:
        return dist.TCPStore(place.master_addr, port, place.world_size, False, timeout, wait_for_workers=False)
    except dist.DistError as error:
        at = f"{place.master_addr}:{port}"
        problem = RanksMissing(f"rank {place.rank} does not reach rank 0's store at {at}: {error}")
        problem.of_this_rank = True
        raise problem from None


def with_device(environment: RankEnvironment, devices: int) -> RankEnvironment:
    """The place with the number of this rank's GPU as local rank, which is what DeepSpeed takes for it.

    Args:
        devices: GPUs that this process sees; where a batch system shows each task its own one only, that is number 0.

    Raises:
        DeviceMissing: there are fewer than ranks on this machine.
    """
    if environment.local_rank < devices:
        return environment
    if devices == 1 and environment.launcher in ("slurm", "mpirun"):
        return replace(environment, local_rank=0)
    raise DeviceMissing(
        f"rank {environment.rank} is number {environment.local_rank} on {os.uname().nodename}, where this process sees "
        f"{devices} GPU(s): start one process a GPU, or set {ACCELERATOR}=cpu"
    )


def end() -> None:
    """Leave the group; without it, torch warns at exit."""
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.stdout.flush()
