"""The place of a process that `mpirun` started: Open MPI's, or one of the MPICH family (hydra, Intel MPI)."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from pretrain.errors import UserError
from pretrain.launch.place import LOOPBACK, RankEnvironment, integer, job_ports, port


@dataclass(frozen=True)
class Variables:
    """Names under which one kind of mpirun tells a process its place."""

    rank: str
    size: str
    local_rank: str
    local_size: str
    job: str
    """The job's name, the same on all its processes; empty if this kind gives none."""


OPEN_MPI = Variables(
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "PMIX_NAMESPACE",
)
MPICH = Variables("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "")


def variables(environ: Mapping[str, str]) -> Variables | None:
    """The kind of mpirun that started this process; None if none did.

    `srun --mpi=pmi2` sets PMI_RANK too: then SLURM's own variables say more.
    """
    if OPEN_MPI.rank in environ:
        return OPEN_MPI
    if MPICH.rank in environ and (MPICH.local_size in environ or "SLURM_PROCID" not in environ):
        return MPICH
    return None


def from_mpi(environ: Mapping[str, str], names: Variables) -> RankEnvironment:
    """The place that mpirun gave this process.

    Raises:
        UserError: a variable is missing, or nothing says where and at which port the processes meet.
    """
    missing = [name for name in (names.size, names.local_rank, names.local_size) if name not in environ]
    if missing:
        raise UserError(
            f"{names.rank} set but not {', '.join(missing)}: set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and "
            f"MASTER_PORT on each process, or unset {names.rank} to run one process"
        )
    size, local_size = integer(environ, names.size), integer(environ, names.local_size)
    address = environ.get("MASTER_ADDR") or (LOOPBACK if local_size == size else "")
    if not address:
        raise UserError(
            f"mpirun put {local_size} of {size} processes on this host and MASTER_ADDR is not set: set it to rank 0's "
            "host on all processes (Open MPI: mpirun -x MASTER_ADDR=HOST)"
        )
    job = zlib.crc32(environ.get(names.job, "").encode(errors="surrogateescape"))
    if environ.get("MASTER_PORT"):
        first, *spare = (port(environ, size),)
    elif job:
        first, *spare = job_ports(job)
    elif size == 1:
        first, *spare = (0,)
    else:
        raise UserError("this mpirun gives its job no name to derive a port from: set MASTER_PORT to a free one")
    return RankEnvironment(
        rank=integer(environ, names.rank),
        world_size=size,
        local_rank=integer(environ, names.local_rank),
        local_world_size=local_size,
        master_addr=address,
        master_port=first,
        launcher="mpirun",
        job=f"mpirun-{job}" if job else "",
        spare_ports=tuple(spare),
    )
