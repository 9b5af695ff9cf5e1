"""Training sessions that die."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITE_POINTS = (
    "room_made",
    "rank_file_begun",
    "rank_file_written",
    "share_told",
    "shares_complete",
    "common_files_written",
    "manifest_written",
    "renamed",
    "latest_moved",
    "pruned",
)


def at_write_points(action: Callable[[str], None]) -> None:
    """Call `action(point)` at every write point of a save, in whichever module it stands."""
    from pretrain.checkpoint import save
    from pretrain.state import files, keep, writer

    assert files.reached in (save.reached, keep.reached, writer.reached)
    for module in (save, keep, writer):
        module.reached = action  # type: ignore[attr-defined]


def train_and_die(rank: int, argv: list[str], pids: Any, point: str, step: int) -> int:
    """Train; SIGKILL all ranks when rank 0 reaches `point` of the save at `step` (or is inside that step)."""
    from pretrain.train import main
    from pretrain.training.loop import Trainer

    pids.append(os.getpid())
    session: list[Trainer] = []
    start_step = Trainer._step

    def kill_all() -> None:
        while len(pids) < int(os.environ["WORLD_SIZE"]):
            time.sleep(0.01)
        for pid in [pid for pid in pids if pid != os.getpid()] + [os.getpid()]:
            os.kill(pid, signal.SIGKILL)

    def step_or_die(trainer: Trainer, number: int) -> None:
        session[:] = [trainer]
        if rank == 0 and point == "step" and number == step:
            listener = trainer.engine.before_update
            listener.append(kill_all)
        start_step(trainer, number)

    def reached(name: str) -> None:
        if rank == 0 and name == point and session[0].callbacks[-1].saved_step == step:
            kill_all()

    Trainer._step = step_or_die  # type: ignore[method-assign]
    at_write_points(reached)
    return main(argv)


def train_with_full_disk(rank: int, argv: list[str], step: int) -> int:
    """Train; rank 1 finds the disk full in every save from `step` on."""
    from pretrain.checkpoint import save
    from pretrain.train import main

    write = save.write_rank_file

    def write_or_fail(folder: Any, *args: Any) -> Any:
        if rank == 1 and int(folder.name.removeprefix(save.TEMPORARY).split("_")[0]) >= step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(folder, *args)

    save.write_rank_file = write_or_fail
    return main(argv)


def train_and_linger(rank: int, argv: list[str], release: str) -> int:
    """Train; when asked to stop, save only once the file `release` is there."""
    from pretrain.checkpoint.callback import Checkpoints
    from pretrain.train import main

    on_end = Checkpoints.on_end

    def linger(callback: Checkpoints, trainer: Any) -> None:
        while not Path(release).exists():
            time.sleep(0.05)
        on_end(callback, trainer)

    Checkpoints.on_end = linger  # type: ignore[method-assign]
    return main(argv)


def train_without_grace(rank: int, argv: list[str]) -> int:
    """Train; a writer at work is not waited for at all."""
    from pretrain.train import main
    from pretrain.training.run_folder import PATIENCE, RunFolder

    RunFolder.acquire.__defaults__ = (0.0, PATIENCE)
    return main(argv)


def train_with_loss_scaler(rank: int, argv: list[str]) -> int:
    """Train in fp32 with fp16's dynamic loss scaler, whose scale doubles every two steps."""
    import torch
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    from pretrain.parallel.zero_engine import ZeroEngine
    from pretrain.train import main

    attach = ZeroEngine.attach

    def attach_with_scaler(engine: ZeroEngine, deepspeed: Any) -> None:
        deepspeed.optimizer.loss_scaler = DynamicLossScaler(16.0, 2, 1.0, 2, False, dtype=torch.half)
        attach(engine, deepspeed)

    ZeroEngine.attach = attach_with_scaler  # type: ignore[method-assign]
    return main(argv)


def train_on_a_filling_disk(rank: int, argv: list[str], filler: str, first: int, last: int) -> int:
    """Train; rank 0 fills the disk of file `filler` before step `first` and makes room again before step `last`."""
    from pretrain.train import main
    from pretrain.training.loop import Trainer

    start_step = Trainer._step

    def step(trainer: Trainer, number: int) -> None:
        if rank == 0 and number == first:
            fill_disk(Path(filler))
        if rank == 0 and number == last:
            Path(filler).unlink()
        start_step(trainer, number)

    Trainer._step = step  # type: ignore[method-assign]
    return main(argv)


def fill_disk(filler: Path, left: int = 0) -> None:
    """Write a file until nothing more goes onto its disk, then give `left` bytes back."""
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            file.truncate(file.tell() - left)
