"""The runs of a reproduction: real trainings, each in a folder of its own, a few at a time.

What is finished is not trained again, and what was interrupted goes on when the same command is given again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pretrain
from pretrain.checkpoint.restore import changed_keys
from pretrain.config.load import load_experiment
from pretrain.config.schema import Experiment
from pretrain.data.prepare import prepare
from pretrain.errors import EXIT_DONE, UserError
from pretrain.launch.environment import LOOPBACK, RankEnvironment, export, free_port
from pretrain.state.run_files import read_summary

SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True)
class Run:
    """One training of a reproduction."""

    folder: Path
    title: str
    recipe: str
    overrides: tuple[str, ...]

    @property
    def arguments(self) -> list[str]:
        return ["--recipe", self.recipe, f"run.dir={self.folder}", *self.overrides]

    def experiment(self) -> Experiment:
        """As it will be trained.

        Raises:
            UserError: what the command line would say; also if the folder holds a run with other settings.
        """
        experiment = load_experiment(self.recipe, [f"run.dir={self.folder}", *self.overrides])
        if changed := changed_keys(self.folder, experiment):
            raise UserError(
                f"{changed[0]} differs from the run in {self.folder}; give another folder with -o, or remove it"
            )
        return experiment

    def finished(self, experiment: Experiment) -> bool:
        return read_summary(self.folder).get("step", 0) >= experiment.train.last_step


def train_all(runs: Sequence[Run], at_a_time: int, say: Callable[[str], None]) -> list[Run]:
    """Train those that are not finished, in the order given; returns those that failed.

    Args:
        runs: all over the same data.
        at_a_time: trainings side by side; they share the cores.
        say: told a line as each ends.

    Raises:
        UserError: before anything is trained.
    """
    experiments = {run: run.experiment() for run in runs}
    waiting = [run for run in runs if not run.finished(experiments[run])]
    if len(waiting) < len(runs):
        say(f"{len(runs) - len(waiting)} of {len(runs)} runs are finished already")
    if waiting:
        prepare(experiments[waiting[0]], quiet=False)  # once, and where its progress is seen
    left = list(waiting)
    running: list[_Training] = []
    failed: list[Run] = []
    try:
        while left or running:
            while left and len(running) < at_a_time:
                running.append(_Training(left.pop(0), at_a_time))
            time.sleep(SECONDS_BETWEEN_LOOKS)
            for training in [training for training in running if training.process.poll() is not None]:
                running.remove(training)
                if training.process.returncode != EXIT_DONE:
                    failed.append(training.run)
                place = len(waiting) - len(left) - len(running)
                say(f"[{place}/{len(waiting)}] {training.told()}")
    finally:
        for training in running:
            training.end()
    return failed


class _Training:
    """One process of pretrain/train.py. It saves and ends when this process has died."""

    def __init__(self, run: Run, at_a_time: int):
        self.run, self.start = run, time.monotonic()
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        self.log = run.folder.with_suffix(".log")
        threads = max(1, len(os.sched_getaffinity(0)) // at_a_time)
        command = [sys.executable, str(Path(pretrain.__file__).with_name("train.py")), *run.arguments]
        command += [f"train.threads={threads}"]
        # As a launcher would start its only rank: a lone process would outlive us.
        place = export(RankEnvironment(0, 1, 0, 1, LOOPBACK, free_port(), "deepspeed"))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=os.environ | place, stdout=log, stderr=subprocess.STDOUT)

    def told(self) -> str:
        """How it ended, in a line."""
        seconds, code = time.monotonic() - self.start, self.process.returncode
        if code != EXIT_DONE:
            return f"{self.run.title}: failed with exit code {code} after {seconds:.0f} s, see {self.log}"
        loss = read_summary(self.run.folder).get("loss")
        return f"{self.run.title}: {seconds:.0f} s" + (f", loss {loss:.3f}" if isinstance(loss, float) else "")

    def end(self) -> None:
        """Let it save and end; Ctrl-C has reached it already."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
