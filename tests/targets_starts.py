"""Training sessions that are still preparing their data while something else happens."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from harness import train_main
from targets_endings import before

PREPARING, GO_ON = "preparing_{rank}", "go_on"


def train_at(rank: int, argv: Sequence[str], port: int) -> int:
    """Train; ranks of several groups may be told the same port, as DeepSpeed's launcher does."""
    os.environ["MASTER_PORT"] = str(port)
    return train_main(rank, argv)


def train_when_told(rank: int, argv: Sequence[str], port: int, signs: Path) -> int:
    """Train; every rank says by a file that it prepares its data, which takes until there is a file GO_ON."""
    from pretrain import build

    def wait(*_: object) -> None:
        (signs / PREPARING.format(rank=rank)).touch()
        wait_for(signs / GO_ON)

    before(build, "prepare", wait)
    return train_at(rank, argv, port)


def train_on_machines(rank: int, argv: Sequence[str], home: Path, seconds: float) -> int:
    """Train; every rank has a temporary folder of its own, and the data takes until the second one's watchdog has
    counted so many seconds."""
    from pretrain import build
    from pretrain.resilience import board
    from pretrain.resilience.watchdog import Watchdog

    here = home / f"machine_{rank}"
    here.mkdir()
    board.TEMPORARY, tempfile.tempdir = here, str(here)
    os.environ |= {"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    counted: list[float] = []

    def count(watchdog: Watchdog, elapsed: float) -> None:
        counted.append(elapsed if watchdog.guards else 0.0)
        if rank == 1 and sum(counted) > seconds:
            (home / GO_ON).touch()

    before(Watchdog, "_round", count)
    before(build, "prepare", lambda *_: wait_for(home / GO_ON))
    return train_main(rank, argv)


def wait_for(sign: Path) -> None:
    while not sign.exists():
        time.sleep(0.05)
