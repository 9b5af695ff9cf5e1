"""The place of one process in a job, and how such numbers are read from variables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pretrain.errors import UserError

LOOPBACK = "127.0.0.1"
PORTS = range(20000, 30000)  # below Linux's ephemeral ports, which start at 32768
TRIES = 16
STRIDE = 1009  # no divisor in common with the number of ports: neighbouring jobs go on at different ones


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
    launcher: Literal["deepspeed", "slurm", "mpirun", "single"]
    job: str = ""
    """Tells this start of the job from all others; empty where its launcher gives it no name."""
    spare_ports: tuple[int, ...] = ()
    """Ports to take instead of `master_port`, in this order, where that is in use; none where the user stated it."""
    hosted: bool = False
    """Whether the launcher itself listens at `master_port` (torchrun's agent), so that rank 0 must not."""

    @property
    def ports(self) -> tuple[int, ...]:
        return (self.master_port, *self.spare_ports)


def job_ports(number: int) -> tuple[int, ...]:
    """Ports that all processes of a job derive from its number, so that they agree without having talked."""
    return tuple(PORTS[(number + STRIDE * k) % len(PORTS)] for k in range(TRIES))


def integer(environ: Mapping[str, str], name: str) -> int:
    """The whole number that a variable holds.

    Raises:
        UserError: it holds something else.
    """
    text = environ[name].strip()
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise UserError(f"{name}={environ[name]!r} is no whole number: start through deepspeed or srun, or unset it")
    return int(text)


def port(environ: Mapping[str, str], world_size: int) -> int:
    """MASTER_PORT.

    Raises:
        UserError: it is no port at which several processes can meet.
    """
    number = integer(environ, "MASTER_PORT")
    if number > 65535 or (number == 0 and world_size > 1):
        raise UserError(f"MASTER_PORT={number} is no port: set one from 1 to 65535")
    return number
