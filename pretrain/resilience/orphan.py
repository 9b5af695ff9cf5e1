"""A rank whose launcher has died saves and ends, so that nothing goes on holding the run's folder and the GPUs.

SIGTERM to `deepspeed` ends only its runner: launch.py and the ranks would go on as orphans.
"""

from __future__ import annotations

import os
import threading

from pretrain.errors import EXIT_ORPHANED
from pretrain.launch.parents import LauncherChain, parent_of
from pretrain.training.callback import Callback
from pretrain.training.loop import Trainer
from pretrain.training.progress import Stop

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_END = 600.0
"""A step and a save must fit in; a collective with a dead rank would hang for longer."""


class OrphanWatch(Callback):
    """Watches the launcher from a thread.

    Args:
        chain: as it was when the rank began.
    """

    def __init__(self, chain: LauncherChain) -> None:
        self.chain = chain
        self.ended = threading.Event()

    def on_start(self, trainer: Trainer) -> None:
        def watch() -> None:
            while not self.ended.wait(SECONDS_BETWEEN_LOOKS):
                if any(parent_of(child) != parent for child, parent in self.chain):
                    trainer.request_stop(Stop.ORPHANED)
                    if not self.ended.wait(SECONDS_TO_END):
                        os._exit(EXIT_ORPHANED)
                    return

        if self.chain:
            threading.Thread(target=watch, name="orphan-watch", daemon=True).start()

    def on_end(self, trainer: Trainer) -> None:
        if trainer.stop == Stop.ORPHANED:
            trainer.folder.event("signal", trainer.progress.step, reason=Stop.ORPHANED.reason)

    def on_close(self, trainer: Trainer) -> None:
        self.ended.set()
