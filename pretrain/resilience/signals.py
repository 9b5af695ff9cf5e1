"""SIGTERM and SIGINT: finish the step, save, exit with a documented code."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from pretrain.training.callback import Callback
from pretrain.training.loop import Trainer
from pretrain.training.progress import Stop

HANDLED = {signal.SIGTERM: Stop.SIGTERM, signal.SIGINT: Stop.SIGINT}


class SignalStop(Callback):
    """Turns the first signal into a request to stop; ranks agree on it after the step.

    Further signals change nothing: DeepSpeed's launcher sends SIGTERM after Ctrl-C's SIGINT, and a forced end in
    the middle of the save would lose it. `kill -9` still ends at once.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.previous: dict[int, Any] = {}

    def on_start(self, trainer: Trainer) -> None:
        def handle(number: int, frame: FrameType | None) -> None:
            if self.received is None:
                self.received = signal.Signals(number).name
                trainer.request_stop(HANDLED[signal.Signals(number)])

        for number in HANDLED:
            self.previous[number] = signal.signal(number, handle)

    def on_end(self, trainer: Trainer) -> None:
        if trainer.stop in HANDLED.values():
            trainer.folder.event("signal", trainer.progress.step, reason=trainer.stop.reason)

    def on_close(self, trainer: Trainer) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
