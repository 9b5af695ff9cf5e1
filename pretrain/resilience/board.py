"""Where ranks leave word for each other without any collective: RUN/logs, and before it exists a folder of the machine.

Rank 0 makes a run's folder when all that can be refused has been checked. Until then ranks of one machine see each
other in its temporary folder, under a name that they all know from the variables of their launcher. Ranks of other
machines are seen once RUN/logs is there: at the latest when the process group starts.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pretrain.launch.environment import RankEnvironment

LAUNCH = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
DAY = 86400.0


def launch_key(environment: RankEnvironment, environ: Mapping[str, str]) -> str:
    """The same on all ranks of a launch. Another launch may have it too: DeepSpeed's port is 29500 every time."""
    said = [f"{name}={environ.get(name, '')}" for name in LAUNCH]
    place = [environment.master_addr, str(environment.master_port), str(environment.world_size)]
    return hashlib.sha256("\n".join([*said, *place]).encode()).hexdigest()[:12]


class Board:
    """The places to write to and to read from.

    Args:
        early: a folder of this machine, or None.
    """

    def __init__(self, early: Path | None):
        self.early = early
        self.logs: Path | None = None
        """RUN/logs, as soon as it is known; it need not exist."""

    @property
    def folder(self) -> Path | None:
        """Where to write now; None if nowhere yet."""
        return self.logs if self.logs is not None and self.logs.is_dir() else self.early

    @property
    def places(self) -> list[Path]:
        """Where others may have written."""
        return [place for place in (self.logs, self.early) if place is not None]

    def leave(self, name: str) -> None:
        """Remove a file from the early place, and the place once it is empty."""
        if self.early is not None:
            with suppress(OSError):
                (self.early / name).unlink(missing_ok=True)
                self.early.rmdir()


def early_place(environment: RankEnvironment, key: str) -> Path | None:
    """A folder of this user on this machine; None for a lone process, or where none can be made."""
    if environment.world_size == 1:
        return None
    home = Path(tempfile.gettempdir()) / f"kilolayer_{os.getuid()}"
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
