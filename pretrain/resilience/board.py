"""Where ranks leave word for each other without any collective: RUN/logs, and before they have met a folder of the
machine.

Rank 0 holds a run's folder only when all that can be refused has been checked, and another session may be at work in
it until then. So ranks of one machine first see each other in its temporary folder. Ranks of other machines are seen in
RUN/logs: where the launcher names its job, as soon as that is there, else once the process group has started.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pretrain.launch.environment import RankEnvironment
from pretrain.launch.parents import launching_process, started
from pretrain.launch.place import LOOPBACK

TEMPORARY = Path("/tmp")
"""Not TMPDIR, which a batch system may set for each rank."""
LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "CROSS_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
DAY = 86400.0


@dataclass(frozen=True)
class LaunchKey:
    """What the ranks of a launch call it before they have talked."""

    name: str
    everywhere: bool
    """Whether it is the same on all machines, and no other launch's."""


def launch_key(environment: RankEnvironment, environ: Mapping[str, str]) -> LaunchKey:
    """By the job's name, or by the process that started this machine's ranks.

    Ranks that were started by hand have only a port in common, which a second launch may state too.
    """
    host, everywhere = socket.gethostname(), True
    if environment.world_size == 1:
        said = [host, str(os.getpid()), str(started(os.getpid()))]
    elif environment.job:
        said = [environment.job]
    else:
        said, everywhere = [host, environ.get("TORCHELASTIC_RESTART_COUNT", "")], False
        if launcher := launching_process(environ):
            said += [str(launcher), str(started(launcher))]
        else:
            said += [environment.master_addr, str(environment.master_port), str(environment.world_size)]
    return LaunchKey(hashlib.sha256("\n".join(said).encode()).hexdigest()[:12], everywhere)


class Board:
    """The places to write to and to read from.

    Args:
        early: a folder of this machine, or None.
        near: the other ranks that are certain to write there.
        everywhere: whether ranks of all machines know the launch by the same key.
    """

    def __init__(self, early: Path | None, near: frozenset[int] = frozenset(), everywhere: bool = False):
        self.early = early
        self.near = near if early is not None else frozenset()
        self.logs: Path | None = None
        """RUN/logs, as soon as it is known; it need not exist."""
        self.met = everywhere
        """Whether all ranks look into RUN/logs for what is this session's."""

    @property
    def shared(self) -> bool:
        """Whether a rank of another machine that is there would be seen."""
        return self.met and self.logs is not None and self.logs.is_dir()

    @property
    def folder(self) -> Path | None:
        """Where to write now; None if nowhere yet."""
        return self.logs if self.shared else self.early

    @property
    def stacks(self) -> Path | None:
        """Where somebody will look for stacks."""
        return self.logs if self.logs is not None and self.logs.is_dir() else self.early

    @property
    def places(self) -> list[Path]:
        """Where others may have written."""
        return [place for place in (self.logs, self.early) if place is not None]

    def hold(self) -> None:
        """From now on RUN/logs is the folder that it is now, wherever it may be moved to: another run's may get its
        name.

        Raises:
            OSError: it is not there.
        """
        self.met = True
        if self.logs is not None:
            handle = os.open(self.logs, os.O_RDONLY | os.O_DIRECTORY)  # until the process ends
            held = Path(f"/proc/self/fd/{handle}")
            self.logs = held if held.is_dir() else self.logs

    def leave(self, name: str) -> None:
        """Remove a file from the early place, and the place once it is empty."""
        if self.early is not None:
            with suppress(OSError):
                (self.early / name).unlink(missing_ok=True)
                self.early.rmdir()


def real(path: Path) -> Path:
    """Its name for people; a folder that has none any more gets one that is not there."""
    return path.readlink() if path.is_relative_to("/proc/self/fd") else path


def board_of(environment: RankEnvironment, environ: Mapping[str, str], key: LaunchKey) -> Board:
    """For the start of a session."""
    return Board(early_place(environment, key.name), near(environment, environ), key.everywhere)


def near(environment: RankEnvironment, environ: Mapping[str, str]) -> frozenset[int]:
    """The other ranks that are certain to be on this machine; none where it is not certain which are."""
    size, local = environment.world_size, environment.local_world_size
    own, first = environment.rank, environment.rank - environment.local_rank
    if "SLURM_GTIDS" in environ and environment.launcher == "slurm":
        listed = environ["SLURM_GTIDS"].split(",")
        ranks = {int(rank) for rank in listed if rank.strip().isdigit()}
    elif local >= size:  # also where nothing says how many there are
        alone = environment.master_addr in (LOOPBACK, "localhost", "::1")
        stated = environment.launcher != "deepspeed" or any(name in environ for name in LOCAL_SIZES)
        ranks = set(range(size)) if alone or stated else set()
    elif environment.launcher == "deepspeed" and first == own // local * local:  # so do both launchers count
        ranks = set(range(first, min(first + local, size)))
    else:
        ranks = set()
    return frozenset(ranks - {own}) if own in ranks else frozenset()


def early_place(environment: RankEnvironment, key: str) -> Path | None:
    """A folder of this user on this machine; None for a lone process, or where none can be made."""
    if environment.world_size == 1:
        return None
    home = TEMPORARY / f"kilolayer_{os.getuid()}"
    try:
        home.mkdir(mode=0o700, exist_ok=True)
        if home.is_symlink() or home.stat().st_uid != os.getuid():
            return None  # somebody else's
        for old in home.iterdir():  # of launches that crashed before they had a folder
            if old.name != key and time.time() - old.stat().st_mtime > DAY:
                shutil.rmtree(old, ignore_errors=True)
        (home / key).mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return None
    return home / key
