"""The place of a process that `srun` started."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping, Sequence

from pretrain.errors import UserError
from pretrain.launch.place import LOOPBACK, RankEnvironment, integer, job_ports, port

Runner = Callable[[Sequence[str]], str]
"""Runs a command and returns what it printed; raises OSError or subprocess.SubprocessError."""


def from_slurm(environ: Mapping[str, str], run: Runner, known: Callable[[str], bool]) -> RankEnvironment:
    """The place that a SLURM step gave this process; arguments and errors as for `rank_environment`."""
    # The step's own count comes first: in an interactive step SLURM_NTASKS still describes the allocation.
    size_name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    missing = [name for name in (size_name, "SLURM_LOCALID", "SLURM_JOB_ID") if name not in environ]
    if missing:
        raise UserError(f"SLURM_PROCID set but not {', '.join(missing)}: start through srun, or unset SLURM_STEP_ID")
    world_size = integer(environ, size_name)
    job, step = integer(environ, "SLURM_JOB_ID"), integer(environ, "SLURM_STEP_ID")
    # Jobs that share a node differ in job id, steps of one job in step id; 7 keeps neighbours of both kinds apart.
    first, *spare = (port(environ, world_size),) if environ.get("MASTER_PORT") else job_ports(job + 7 * step)
    return RankEnvironment(
        rank=integer(environ, "SLURM_PROCID"),
        world_size=world_size,
        local_rank=integer(environ, "SLURM_LOCALID"),
        local_world_size=_local_size(environ, world_size),
        master_addr=environ.get("MASTER_ADDR") or _first_host(environ, world_size, run, known),
        master_port=first,
        launcher="slurm",
        job=f"slurm-{job}.{step}-{environ.get('SLURM_RESTART_COUNT', '0')}",
        spare_ports=tuple(spare),
    )


def _local_size(environ: Mapping[str, str], world_size: int) -> int:
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
    node = integer(environ, "SLURM_NODEID") if "SLURM_NODEID" in environ else 0
    return counts[node] if node < len(counts) else counts[0]


def _first_host(environ: Mapping[str, str], world_size: int, run: Runner, known: Callable[[str], bool]) -> str:
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
