"""A rank whose launcher has died saves and ends, so that nothing goes on holding the run's folder and the GPUs.

SIGTERM to `deepspeed` ends only its runner: launch.py and the ranks would go on as orphans.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from pretrain.errors import EXIT_ORPHANED
from pretrain.training.callback import Callback
from pretrain.training.loop import Trainer
from pretrain.training.progress import Stop

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_END = 120.0
"""A step and a save must fit in; a collective with a dead rank would hang for longer."""


def launcher_chain(pid: int) -> list[tuple[int, int]]:
    """(process, its parent) for `pid` and, where its parent is DeepSpeed's launch.py, for that one too."""
    parent = parent_of(pid)
    chain = [(pid, parent)]
    if "deepspeed.launcher.launch" in _command_line(parent):
        chain.append((parent, parent_of(parent)))
    return chain


def parent_of(pid: int) -> int:
    """Parent process id from /proc; 0 if `pid` is gone."""
    try:
        # The command name, in parentheses, may hold spaces.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


class OrphanWatch(Callback):
    """Watches the launcher from a thread. For ranks of a launcher only: a lone process may outlive its shell."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def on_start(self, trainer: Trainer) -> None:
        chain = launcher_chain(os.getpid())

        def watch() -> None:
            while not self.ended.wait(SECONDS_BETWEEN_LOOKS):
                if any(parent_of(child) != parent for child, parent in chain):
                    trainer.request_stop(Stop.ORPHANED)
                    if not self.ended.wait(SECONDS_TO_END):
                        os._exit(EXIT_ORPHANED)
                    return

        threading.Thread(target=watch, name="orphan-watch", daemon=True).start()

    def on_end(self, trainer: Trainer) -> None:
        if trainer.stop == Stop.ORPHANED:
            trainer.folder.event("signal", trainer.progress.step, reason=Stop.ORPHANED.reason)

    def on_close(self, trainer: Trainer) -> None:
        self.ended.set()
