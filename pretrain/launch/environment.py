"""Who am I? Rank and rendezvous of this process, read from the variables its launcher set."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence

from pretrain.errors import UserError
from pretrain.launch import mpi
from pretrain.launch.place import LOOPBACK, RankEnvironment, integer, port
from pretrain.launch.slurm_step import Runner, from_slurm

REQUIRED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
INNER = ("TORCHELASTIC_RUN_ID", "CROSS_SIZE")
"""What torchrun and the DeepSpeed launcher add: they may run inside a task of mpirun, whose numbers are others then."""


def run_command(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def free_port() -> int:
    """A port of this machine that nobody listens at now."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        number: int = listener.getsockname()[1]
        return number


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

    In this order: the variables of the DeepSpeed launcher (torchrun sets the same ones), those of `mpirun`, which
    starts its processes through SLURM where it can, those of a SLURM step (`srun`), else one process. A plain `python`
    inside `salloc` or an sbatch script is one process: SLURM describes the allocation there, but started no step.

    Args:
        environ: the variables, usually os.environ. Nothing else is read but what `run` and `known` answer.
        run: runs `scontrol`, which is asked only by a SLURM step on several nodes.
        known: whether a host name has an address.

    Raises:
        UserError: a launcher's variables are half set or contradict each other, or `scontrol` does not answer.
    """
    if any(name in environ for name in PLACE):
        _check_mpi_agrees(environ)
        return _checked(_from_launcher(environ))
    if variables := mpi.variables(environ):
        return _checked(mpi.from_mpi(environ, variables))
    if "SLURM_STEP_ID" in environ and "SLURM_PROCID" in environ:
        return _checked(from_slurm(environ, run, known))
    return RankEnvironment(0, 1, 0, 1, LOOPBACK, 0, "single")


def speaks(environ: Mapping[str, str]) -> bool:
    """Whether this process is the one that says what is wrong: rank 0, as far as the variables tell, however broken."""
    variables = mpi.variables(environ)
    if variables and _disagrees(environ, variables):
        # Variables that an earlier job left are the same everywhere: the process whose rank they hit sees nothing.
        zero_agrees = not _disagrees({**environ, variables.rank: "0"}, variables)
        return environ[variables.rank] == ("1" if zero_agrees else "0")
    names = ("RANK", *([variables.rank] if variables else []), "SLURM_PROCID")
    return next((environ[name] for name in names if name in environ), "0").strip() == "0"


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
        return max(1, min(cores, integer(environ, "SLURM_CPUS_PER_TASK")))
    return threads_per_process(cores, environment.local_world_size)


def _from_launcher(environ: Mapping[str, str]) -> RankEnvironment:
    missing = [name for name in REQUIRED if name not in environ]
    if missing:
        present = [name for name in REQUIRED if name in environ]
        raise UserError(
            f"{', '.join(present)} set but not {', '.join(missing)}: "
            f"start through deepspeed, torchrun, mpirun or srun, or unset {' '.join(present)} to run one process"
        )
    world_size = integer(environ, "WORLD_SIZE")
    return RankEnvironment(
        rank=integer(environ, "RANK"),
        world_size=world_size,
        local_rank=integer(environ, "LOCAL_RANK"),
        local_world_size=_launcher_local_size(environ, world_size),
        master_addr=environ["MASTER_ADDR"],
        master_port=port(environ, world_size),
        launcher="deepspeed",
        hosted=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def _launcher_local_size(environ: Mapping[str, str], world_size: int) -> int:
    # torchrun says LOCAL_WORLD_SIZE, the DeepSpeed launcher LOCAL_SIZE and CROSS_SIZE (the number of machines).
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", mpi.OPEN_MPI.local_size):
        if name in environ:
            return integer(environ, name)
    machines = integer(environ, "CROSS_SIZE") if "CROSS_SIZE" in environ else 1
    return max(1, world_size // max(1, machines))


def _check_mpi_agrees(environ: Mapping[str, str]) -> None:
    """Raises UserError: an earlier job's variables, or ours, are in mpirun's way.

    LOCAL_RANK may differ: it is 0 on every process where each sees a GPU of its own.
    """
    variables = mpi.variables(environ)
    if variables is None:
        return
    for ours, theirs in _disagrees(environ, variables):
        raise UserError(
            f"{ours}={environ[ours]} but {theirs}={environ.get(theirs, '')}: unset {' '.join(PLACE)} to go by mpirun's "
            f"numbers, or {variables.rank} to go by the others"
        )


def _disagrees(environ: Mapping[str, str], variables: mpi.Variables) -> list[tuple[str, str]]:
    """Pairs of variables, ours and mpirun's, that contradict each other where no inner launcher explains it."""
    if any(name in environ for name in INNER):
        return []
    pairs = (("RANK", variables.rank), ("WORLD_SIZE", variables.size))
    return [(ours, theirs) for ours, theirs in pairs if ours in environ and environ[ours] != environ.get(theirs)]


def _checked(environment: RankEnvironment) -> RankEnvironment:
    for name, number, size_name, size in (
        ("RANK", environment.rank, "WORLD_SIZE", environment.world_size),
        ("LOCAL_RANK", environment.local_rank, "LOCAL_WORLD_SIZE", environment.local_world_size),
    ):
        if number >= size:
            prefix = f"{name} {number} of {size_name} {size}"
            raise UserError(f"{prefix}: ranks count from 0 to {size_name} - 1; start through deepspeed or srun")
    return environment
