"""SIGTERM and SIGINT: finish the step, save, exit with a documented code."""

from __future__ import annotations

import signal
from types import FrameType

from pretrain.training.callback import Callback
from pretrain.training.loop import Trainer
from pretrain.training.progress import Stop

HANDLED = {signal.SIGTERM: Stop.SIGTERM, signal.SIGINT: Stop.SIGINT}


class SignalStop(Callback):
    """Turns the first signal into a request to stop; ranks agree on it after the step.

    Listens from its construction on, so that a signal during the start is not lost.

    Further signals change nothing: DeepSpeed's launcher sends SIGTERM after Ctrl-C's SIGINT, and a forced end in
    the middle of the save would lose it. `kill -9` still ends at once.
    """

    def __init__(self) -> None:
        self.received: Stop | None = None
        self.trainer: Trainer | None = None
        self.previous = {number: signal.signal(number, self._handle) for number in HANDLED}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = HANDLED[signal.Signals(number)]
            if self.trainer is not None:
                self.trainer.request_stop(self.received)

    def on_start(self, trainer: Trainer) -> None:
        self.trainer = trainer
        if self.received is not None:  # it came while the engine was being built
            trainer.request_stop(self.received)

    def on_end(self, trainer: Trainer) -> None:
        if trainer.stop in HANDLED.values():
            trainer.folder.event("signal", trainer.progress.step, reason=trainer.stop.reason)

    def on_close(self, trainer: Trainer) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
