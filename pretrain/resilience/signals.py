"""SIGTERM, SIGINT and SIGHUP: finish the step, save, exit with a documented code."""

from __future__ import annotations

import os
import signal
from types import FrameType

from pretrain.errors import EXIT_STOPPED_BY_SIGNAL
from pretrain.training.callback import Callback
from pretrain.training.loop import Trainer
from pretrain.training.progress import SIGNALS, Stop

HANDLED = {signal.SIGTERM: Stop.SIGTERM, signal.SIGINT: Stop.SIGINT, signal.SIGHUP: Stop.SIGHUP}


class SignalStop(Callback):
    """Turns the first signal into a request to stop; ranks agree on it after the step.

    Listens from its construction on; a signal before the first step ends the process at once, with the same code.
    SIGHUP (a closed terminal) is left ignored where it is ignored: `nohup` means that training goes on.

    Further signals change nothing: DeepSpeed's launcher sends SIGTERM after Ctrl-C's SIGINT, and a forced end in
    the middle of the save would lose it. `kill -9` still ends at once.
    """

    def __init__(self) -> None:
        self.received: Stop | None = None
        self.trainer: Trainer | None = None
        nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        self.handled = [number for number in HANDLED if not (nohup and number == signal.SIGHUP)]
        for number in self.handled:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = HANDLED[signal.Signals(number)]
            if self.trainer is None:
                os._exit(EXIT_STOPPED_BY_SIGNAL)  # nothing is there to save yet, and another rank may be gone
            self.trainer.request_stop(self.received)

    def on_start(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_end(self, trainer: Trainer) -> None:
        if trainer.stop in SIGNALS:
            trainer.folder.event("signal", trainer.progress.step, reason=trainer.stop.reason)

    def on_close(self, trainer: Trainer) -> None:
        # What is left is to log the end; the launcher sends SIGTERM when another rank has ended before this one.
        for number in self.handled:
            signal.signal(number, signal.SIG_IGN)
