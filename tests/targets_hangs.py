"""Training sessions in which a rank stops, stands still, is slow, or is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from harness import train_main

SEEN = 0.5
"""Seconds for a heartbeat to say where the rank is, at watchdog.timeout=3: five of them."""


def in_layer(action: Callable[[], None], layer: str, step: int) -> None:
    """Run `action` once, inside the forward of that layer in that step."""
    from pretrain.resilience.watchdog import Watchdog

    on_start = Watchdog.on_start

    def start(watchdog: Watchdog, trainer: Any) -> None:
        on_start(watchdog, trainer)
        module = dict(trainer.engine.layers.built_layers())[layer]

        def act(*_: Any) -> None:
            if watchdog.step == step:
                handle.remove()
                action()

        handle = module.register_forward_hook(act)

    Watchdog.on_start = start  # type: ignore[method-assign]


def stop() -> None:
    time.sleep(SEEN)
    os.kill(os.getpid(), signal.SIGSTOP)


def stop_and_rest() -> None:
    stop()
    time.sleep(1.0)  # long enough to be judged


def kill() -> None:
    time.sleep(SEEN)
    os.kill(os.getpid(), signal.SIGKILL)


def sleep() -> None:
    time.sleep(600)


def fail() -> None:
    raise ZeroDivisionError("for once")


ACTIONS = {"stop": stop, "stop and rest": stop_and_rest, "kill": kill, "sleep": sleep, "fail": fail}


def train_and(rank: int, argv: list[str], action: str, who: int, layer: str, step: int) -> int:
    """Train; rank `who` does something inside that layer's forward in that step."""
    if rank == who:
        in_layer(ACTIONS[action], layer, step)
    return train_main(rank, argv)


def train_slowly(rank: int, argv: list[str], seconds: float, step: int) -> int:
    """Train; in that step every layer's forward takes so many seconds longer."""
    from pretrain.resilience.watchdog import Watchdog

    on_start = Watchdog.on_start

    def start(watchdog: Watchdog, trainer: Any) -> None:
        on_start(watchdog, trainer)
        for _, module in trainer.engine.layers.built_layers():
            module.register_forward_hook(lambda *_: time.sleep(seconds) if watchdog.step == step else None)

    Watchdog.on_start = start  # type: ignore[method-assign]
    return train_main(rank, argv)
