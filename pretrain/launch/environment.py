"""Who am I? Rank and rendezvous of this process, read from the variables its launcher set."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pretrain.errors import UserError

REQUIRED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
LOOPBACK = "127.0.0.1"
PORTS = range(20000, 30000)  # below Linux's ephemeral ports, which start at 32768

Runner = Callable[[Sequence[str]], str]
"""Runs a command and returns what it printed; raises OSError or subprocess.SubprocessError."""


@dataclass(frozen=True)
class RankEnvironment:
    """Place of one process in the job, and the address at which all processes meet."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_addr: str
    master_port: int
    """0 for a lone process: the system then chooses a free port."""
    launcher: Literal["deepspeed", "slurm", "single"]


def run_command(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def free_port() -> int:
    """A port of this machine that nobody listens at now."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        port: int = listener.getsockname()[1]
        return port


def resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True


def rank_environment(
    environ: Mapping[str, str], run: Runner = run_command, known: Callable[[str], bool] = resolves
) -> RankEnvironment:
    """Find the launcher of this process and what it said.

    In this order: the variables of the DeepSpeed launcher (torchrun sets the same ones), those of a SLURM step
    (`srun`), else one process. A plain `python` inside `salloc` or an sbatch script is one process: SLURM describes
    the allocation there, but started no step.

    Args:
        environ: the variables, usually os.environ. Nothing else is read but what `run` and `known` answer.
        run: runs `scontrol`, which is asked only by a SLURM step on several nodes.
        known: whether a host name has an address.

    Raises:
        UserError: a launcher's variables are half set or contradict each other, or `scontrol` does not answer.
    """
    if any(name in environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")):
        return _checked(_from_launcher(environ))
    if "SLURM_STEP_ID" in environ and "SLURM_PROCID" in environ:
        return _checked(_from_slurm(environ, run, known))
    return RankEnvironment(0, 1, 0, 1, LOOPBACK, 0, "single")


def export(environment: RankEnvironment) -> dict[str, str]:
    """The variables that torch.distributed and DeepSpeed read when a process group starts."""
    return {
        "RANK": str(environment.rank),
        "WORLD_SIZE": str(environment.world_size),
        "LOCAL_RANK": str(environment.local_rank),
        "LOCAL_WORLD_SIZE": str(environment.local_world_size),
        "MASTER_ADDR": environment.master_addr,
        "MASTER_PORT": str(environment.master_port),
    }


def threads_per_process(cores: int, local_world_size: int) -> int:
    """CPU threads for each of `local_world_size` processes that share `cores` cores; at least 1."""
    return max(1, cores // max(1, local_world_size))


def process_threads(environment: RankEnvironment, environ: Mapping[str, str], cores: int) -> int:
    """CPU threads for this process: its share of the `cores` it may run on, or what SLURM gave each task.

    With `srun --cpus-per-task` every task may have a mask of its own, which must not be divided again.
    """
    if environment.launcher == "slurm" and "SLURM_CPUS_PER_TASK" in environ:
        return max(1, min(cores, _integer(environ, "SLURM_CPUS_PER_TASK")))
    return threads_per_process(cores, environment.local_world_size)


def _from_launcher(environ: Mapping[str, str]) -> RankEnvironment:
    missing = [name for name in REQUIRED if name not in environ]
    if missing:
        present = [name for name in REQUIRED if name in environ]
        raise UserError(
            f"{', '.join(present)} set but not {', '.join(missing)}: "
            f"start through deepspeed or srun, or unset {' '.join(present)} to run one process"
        )
    world_size = _integer(environ, "WORLD_SIZE")
    return RankEnvironment(
        rank=_integer(environ, "RANK"),
        world_size=world_size,
        local_rank=_integer(environ, "LOCAL_RANK"),
        local_world_size=_launcher_local_size(environ, world_size),
        master_addr=environ["MASTER_ADDR"],
        master_port=_integer(environ, "MASTER_PORT"),
        launcher="deepspeed",
    )


def _launcher_local_size(environ: Mapping[str, str], world_size: int) -> int:
    # torchrun says LOCAL_WORLD_SIZE, the DeepSpeed launcher LOCAL_SIZE and CROSS_SIZE (the number of machines).
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        if name in environ:
            return _integer(environ, name)
    machines = _integer(environ, "CROSS_SIZE") if "CROSS_SIZE" in environ else 1
    return max(1, world_size // max(1, machines))


def _from_slurm(environ: Mapping[str, str], run: Runner, known: Callable[[str], bool]) -> RankEnvironment:
    # The step's own count comes first: in an interactive step SLURM_NTASKS still describes the allocation.
    size_name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    missing = [name for name in (size_name, "SLURM_LOCALID", "SLURM_JOB_ID") if name not in environ]
    if missing:
        raise UserError(f"SLURM_PROCID set but not {', '.join(missing)}: start through srun, or unset SLURM_STEP_ID")
    world_size = _integer(environ, size_name)
    return RankEnvironment(
        rank=_integer(environ, "SLURM_PROCID"),
        world_size=world_size,
        local_rank=_integer(environ, "SLURM_LOCALID"),
        local_world_size=_slurm_local_size(environ, world_size),
        master_addr=environ.get("MASTER_ADDR") or _slurm_first_host(environ, world_size, run, known),
        master_port=_integer(environ, "MASTER_PORT") if "MASTER_PORT" in environ else _slurm_port(environ),
        launcher="slurm",
    )


def _slurm_local_size(environ: Mapping[str, str], world_size: int) -> int:
    """Tasks of this node, from a list like `2(x3),1` and the node's number in it."""
    listed = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE")
    if not listed:
        return world_size
    counts: list[int] = []
    for part in listed.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            raise UserError(f"SLURM_STEP_TASKS_PER_NODE={listed} is no list of task counts: start through srun")
        counts += [int(match[1])] * int(match[2] or 1)
    node = _integer(environ, "SLURM_NODEID") if "SLURM_NODEID" in environ else 0
    return counts[node] if node < len(counts) else counts[0]


def _slurm_first_host(environ: Mapping[str, str], world_size: int, run: Runner, known: Callable[[str], bool]) -> str:
    """Address of the node of rank 0: the first of the step's node list."""
    if world_size == 1 or environ.get("SLURM_STEP_NUM_NODES", environ.get("SLURM_NNODES")) == "1":
        return LOOPBACK
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST")
    if not nodes:
        raise UserError("SLURM_STEP_NODELIST is not set: start through srun, or set MASTER_ADDR to rank 0's host")
    try:
        host = run(["scontrol", "show", "hostnames", nodes]).split()[0]
        if known(host):
            return host
        # A node's name need not be a host name (cloud nodes): SLURM knows the address then.
        address = re.search(r"\bNodeAddr=(\S+)", run(["scontrol", "show", "node", host]))
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise UserError(
            f"scontrol does not expand SLURM_STEP_NODELIST={nodes} ({type(error).__name__}): "
            "set MASTER_ADDR to the host of rank 0"
        ) from error
    return address[1] if address else host


def _slurm_port(environ: Mapping[str, str]) -> int:
    # Jobs that share a node differ in job id, steps of one job in step id; 7 keeps neighbours of both kinds apart.
    number = _integer(environ, "SLURM_JOB_ID") + 7 * _integer(environ, "SLURM_STEP_ID")
    return PORTS[number % len(PORTS)]


def _integer(environ: Mapping[str, str], name: str) -> int:
    text = environ[name].strip()
    if not text.isdecimal():
        raise UserError(f"{name}={environ[name]!r} is no whole number: start through deepspeed or srun, or unset it")
    return int(text)


def _checked(environment: RankEnvironment) -> RankEnvironment:
    for name, number, size_name, size in (
        ("RANK", environment.rank, "WORLD_SIZE", environment.world_size),
        ("LOCAL_RANK", environment.local_rank, "LOCAL_WORLD_SIZE", environment.local_world_size),
    ):
        if number >= size:
            prefix = f"{name} {number} of {size_name} {size}"
            raise UserError(f"{prefix}: ranks count from 0 to {size_name} - 1; start through deepspeed or srun")
    return environment
