"""Training sessions, as the script would run them, in which a rank ends in some way in some phase."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from pretrain.errors import DataError

BEATS = 0.5
"""Seconds for a heartbeat to say where the rank is, at watchdog.timeout=3: five of them."""


def fail() -> None:
    raise ZeroDivisionError("for once")


def refuse() -> None:
    raise DataError("data.train: its disk is not mounted here")


def send(number: int) -> Callable[[], None]:
    def act() -> None:
        time.sleep(BEATS)
        os.kill(os.getpid(), number)

    return act


WAYS: dict[str, Callable[[], None]] = {
    "raise": fail,
    "refuse": refuse,
    "kill": send(signal.SIGKILL),
    "stop": send(signal.SIGSTOP),
    "hang up": send(signal.SIGHUP),
}


def before(owner: Any, name: str, action: Callable[..., None]) -> None:
    """Call `action` with the arguments of `owner.name` ahead of each call."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        action(*args)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def plant(phase: str, act: Callable[[], None]) -> None:
    """Let `act` happen once in that phase; in one that comes again, at its first time behind the session's first step,
    so that each session comes further than the one before."""
    from pretrain import build
    from pretrain.checkpoint.callback import Checkpoints
    from pretrain.checkpoint.continuity import Continuity
    from pretrain.monitors import policy
    from pretrain.resilience.watchdog import Watchdog
    from pretrain.training.evaluation import Evaluation
    from pretrain.training.loop import Trainer

    done: list[int] = []
    steps: list[int] = []

    def once(*_: Any) -> None:
        if not done:
            done.append(1)
            act()

    def later(*_: Any) -> None:
        if len(steps) > 1:
            once()

    def resuming(callback: Any, trainer: Any, checkpoint: Any) -> None:
        trainer.loader.next()  # its thread is at work
        once()

    before(Trainer, "_step", lambda trainer, step: steps.append(step))
    match phase:
        case "start":
            before(Watchdog, "guard", once)
        case "data":
            before(build, "prepare", once)
        case "build":
            before(build, "build_engine", once)
        case "resume":
            before(Continuity, "on_resume", resuming)
        case "step":
            before(Trainer, "_step", later)
        case "save":
            before(Checkpoints, "_begin", later)
        case "evaluate":
            before(Evaluation, "evaluate", later)
        case "rollback":  # behind its event
            before(policy, "resume", once)


def run_script_of(rank: int, argv: list[str]) -> None:
    """The trainer as a process of its own."""
    run_script(argv)


def run_script(argv: list[str]) -> None:
    from pretrain.train import script

    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a test that runs under nohup is no run under nohup
    script(argv)


def poison(tries: list[int]) -> None:
    """Make the first two tries of the session's second step not finite, on every rank."""
    from targets_policy import Faults

    from pretrain import build

    class Second(Faults):
        def on_start(self, trainer: Any) -> None:
            self.nan = {trainer.progress.step + 2: tries[0]}
            super().on_start(trainer)

    callbacks = build.callbacks
    build.callbacks = lambda *args, **kwargs: [Second(), *callbacks(*args, **kwargs)]


def train_and_end(rank: int, argv: list[str], way: str, phase: str, who: int) -> None:
    """Train as the script does; rank `who` ends in that way in that phase."""
    if phase == "rollback":
        poison([2])
    if rank == who:
        plant(phase, WAYS[way])
    run_script(argv)


def stop_before_any_beat(rank: int, argv: list[str], who: int) -> None:
    """Rank `who` is stopped before it has shown that it is there."""
    if rank == who:
        os.kill(os.getpid(), signal.SIGSTOP)
    run_script(argv)


POINTS = ("set aside", "told", "filled", "cut")
"""Of a rollback: newer checkpoints are set aside, its event is written, the weights are back, metrics.jsonl is cut."""


def train_and_die_in_rollback(rank: int, argv: list[str], point: str) -> None:
    """Every rank dies when it has come to that point of the session's first rollback."""
    from pretrain.checkpoint import restore
    from pretrain.monitors import policy
    from pretrain.training import run_folder

    def die(*_: Any) -> None:
        if rank == 0:
            time.sleep(BEATS)  # the other one comes as far
        os.kill(os.getpid(), signal.SIGKILL)

    poison([2])
    match point:
        case "set aside":
            before(policy, "skip_range", die)
        case "told":
            before(policy, "resume", die)
        case "filled":
            before(policy, "resume", lambda *_: before(restore, "_restore_rng", die))
        case "cut":  # and layers.jsonl is not

            def second_file(path: Any, *_: Any) -> None:
                if path.name == "layers.jsonl":
                    die()

            def when_cutting(*_: Any) -> None:
                if rank == 0:
                    before(run_folder, "mend", second_file)
                else:
                    before(restore, "cut_logs", die)

            before(policy, "resume", when_cutting)
    run_script(argv)


def train_under_nohup(rank: int, argv: list[str], step: int) -> None:
    """Train; a hang-up comes at that step."""
    from pretrain.train import script
    from pretrain.training.loop import Trainer

    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def hang_up(trainer: Any, number: int) -> None:
        if number == step:
            os.kill(os.getpid(), signal.SIGHUP)

    before(Trainer, "_step", hang_up)
    script(argv)
