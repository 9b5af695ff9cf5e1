"""Runs functions in fresh processes of one gloo group, quickly: forked from a server that has imported everything.

    results = run_group(target, world_size, *args)      # target(rank, *args) on every rank

A target is a module-level function of a module below tests/.
"""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import tempfile
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pretrain.launch.environment import free_port

CONTEXT = mp.get_context("forkserver")
CONTEXT.set_forkserver_preload(["harness_preload"])


def _enter(
    pipe: Connection, log: str, target: Callable[..., Any], rank: int, world_size: int, port: int, args: Any
) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    try:
        pipe.send(("result", target(rank, *args)))
    except BaseException:
        pipe.send(("error", traceback.format_exc()))


class Group:
    """Started processes of one group.

    Args:
        target: `target(rank, *args)`.
        world_size: number of processes.
    """

    def __init__(self, target: Callable[..., Any], world_size: int, *args: Any):
        port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="group_"))
        self.pipes, self.processes = [], []
        for rank in range(world_size):
            ours, theirs = CONTEXT.Pipe()
            log = str(self.folder / f"rank_{rank}.txt")
            process = CONTEXT.Process(target=_enter, args=(theirs, log, target, rank, world_size, port, args))
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self.processes if process.pid is not None]

    def output(self, rank: int = 0) -> str:
        """What a rank printed, standard error included."""
        return (self.folder / f"rank_{rank}.txt").read_text()

    def join(self, timeout: float = 180.0) -> list[int | None]:
        """Wait for the end of all; exit codes, negative for a signal. Those that hang are killed."""
        for process in self.processes:
            process.join(timeout)
            if process.is_alive():
                process.kill()
                process.join()
        return [process.exitcode for process in self.processes]

    def results(self, timeout: float = 180.0) -> list[Any]:
        """What each rank returned; raises with the trace of a rank that failed."""
        outcomes = []
        for rank, pipe in enumerate(self.pipes):
            try:
                outcomes.append(pipe.recv() if pipe.poll(timeout) else ("error", f"rank {rank} hangs"))
            except EOFError:
                outcomes.append(("error", f"rank {rank} died"))
        codes = self.join(10.0)
        for kind, value in outcomes:
            if kind == "error":
                raise AssertionError(f"exit codes {codes}\n{self.output()}\n{value}")
        return [value for _, value in outcomes]


def run_group(target: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """Run `target(rank, *args)` on every rank of a new group; the results by rank."""
    return Group(target, world_size, *args).results()


def train_main(rank: int, argv: Sequence[str]) -> int:
    """The trainer's own main, as a launcher would start it; returns its exit code."""
    from pretrain.train import main

    try:
        return main(list(argv))
    except SystemExit as end:  # argparse
        return int(end.code or 0)


def refused(argv: Sequence[str], world_size: int = 1) -> str:
    """The one line that the trainer prints on wrong input; asserts exit code 2 and silence of the other ranks."""
    group = Group(train_main, world_size, argv)
    assert group.results() == [2] * world_size
    assert all(group.output(rank) == "" for rank in range(1, world_size))
    error = group.output().strip()
    assert error.startswith("error: ")
    assert error.count("\n") == 0
    return error


def train(argv: Sequence[str], world_size: int = 1) -> None:
    """Run the trainer to its end on `world_size` processes."""
    group = Group(train_main, world_size, argv)
    assert group.results() == [0] * world_size, group.output()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(run: Path) -> list[float]:
    """Training losses by step; asserts that every step stands there once, in order."""
    steps = [entry for entry in lines(run / "metrics.jsonl") if "loss" in entry]
    assert [entry["step"] for entry in steps] == list(range(1, len(steps) + 1))
    return [entry["loss"] for entry in steps]


def alerts(run: Path) -> list[str]:
    """Reasons of the alerts, but for those of verdicts."""
    events = (event for event in lines(run / "events.jsonl") if event["event"] == "alert")
    return [event["reason"] for event in events if "signal" not in event]


def figures(run: Path, key: str) -> list[float]:
    return [entry[key] for entry in lines(run / "metrics.jsonl") if key in entry]
