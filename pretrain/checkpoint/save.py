"""Save from all ranks: a copy while training stands still, then files, manifest, rename and pointer in the background.

1. The training thread copies this rank's shards into reused buffers, and the training state into JSON.
2. A thread writes this rank's one file and says so in a small record.
3. Rank 0's thread waits for every record and commits: index, manifest, rename, pointer; then removes what is too old.

Only the training thread takes part in collectives.
"""

from __future__ import annotations

import json
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from pretrain.checkpoint.snapshot import Snapshot
from pretrain.errors import SaveFailed
from pretrain.parallel import collectives
from pretrain.parallel.engine import Engine
from pretrain.state.files import reached
from pretrain.state.index import Index
from pretrain.state.keep import Keep, prune
from pretrain.state.reader import point_latest, step_folder
from pretrain.state.shares import SHARES, ShareFailed, tell_done, tell_failed, wait_for_shares
from pretrain.state.writer import commit, rank_file, read_pieces, write_common_files, write_rank_file

TEMPORARY = ".saving_"


@dataclass(frozen=True)
class Saved:
    """What rank 0 tells of a checkpoint that is complete."""

    step: int
    stall_seconds: float
    """Training stood still for so long before the thread began; where it then waits for it, `write_seconds` more."""
    wait_seconds: float
    """The part of it spent on waiting for the save before."""
    write_seconds: float
    """The thread took so long."""
    prune_problem: str
    """Why `latest` could not be moved or older ones not be removed; empty if all was done."""


class _Running(threading.Thread):
    """Writes one save. Not a daemon: also an exit that closes nothing waits for it, for `command_line.PATIENCE`."""

    def __init__(self, step: int, write: Callable[[], str]):
        super().__init__(name="save")
        self.step, self._write = step, write
        self.problem = ""
        """Why it failed; final once the thread has ended."""

    def run(self) -> None:
        try:
            self.problem = self._write()
        except BaseException as error:  # an unknown failure must not pass for a save
            self.problem = f"checkpoint: could not write it ({_clause(error)})"


class Saver:
    """Saves of one session, of which at most one is being written.

    Args:
        checkpoints: RUN/checkpoints.
        keep: which ones stay.
        layout: how this session is laid out, for the manifest.
        texts: further files (config.yaml, tokenizer.model), written by rank 0.
        tell: called by rank 0's thread once a checkpoint is complete.
        check: called on rank 0 before anything is written; raises if it must not be.
        complete: called by rank 0's thread before a checkpoint gets its name; raises if what belongs to it elsewhere is
            not on the disk.
    """

    def __init__(
        self,
        checkpoints: Path,
        keep: Keep,
        layout: dict[str, Any],
        texts: dict[str, bytes],
        tell: Callable[[Saved], None],
        check: Callable[[], None] = lambda: None,
        complete: Callable[[], None] = lambda: None,
    ):
        self.checkpoints, self.keep, self.layout, self.texts, self.tell = checkpoints, keep, layout, texts, tell
        self.check, self.complete = check, complete
        self._rank, self._ranks = collectives.rank(), collectives.world_size()
        self._snapshot = Snapshot()
        self._running: _Running | None = None
        self._ending = threading.Event()
        # Ranks of a session whose rank 0 has died may live on for a while: they must not write into the next one's.
        self._session = collectives.share_text(secrets.token_hex(4))

    @property
    def running(self) -> int | None:
        """Step of the save that has not been waited for."""
        return self._running.step if self._running else None

    def begin(
        self,
        step: int,
        engine: Engine,
        training: dict[str, Any],
        since: float,
        waited: float = 0.0,
        fresh: bool = False,
        tensors: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        """Copy the state, then go on in the background. Collective; no other save may be running.

        Args:
            step: names the folder.
            engine: gives the shards.
            training: the trainer's state, JSON.
            since: time.perf_counter() when training began to stand still.
            waited: seconds of that spent on an earlier save.
            fresh: ask the engine anew where its state lies.
            tensors: what of the trainer's state is too large for JSON; rank 0's are saved.

        Raises:
            SaveFailed: on every rank, if no folder could be made, or no copy.
        """
        assert self._running is None
        temporary = self.checkpoints / f"{TEMPORARY}{step:08d}_{self._session}"

        def prepare() -> None:
            self._make_room(temporary)
            self._snapshot.take(engine, fresh, tensors if self._rank == 0 else {})

        _together(prepare, "prepare")  # nobody writes before the folder is there
        state = json.dumps(training)
        timing = (time.perf_counter() - since, waited)
        self._running = _Running(step, lambda: self._write(temporary, step, state, timing))
        self._running.start()

    def wait(self) -> None:
        """Wait until the running save is complete on every rank, if there is one. Collective.

        Raises:
            SaveFailed: on every rank, if any could not write its share (a full disk), or rank 0 not complete it.
        """
        if self._running is None:
            return
        running, self._running = self._running, None
        running.join()
        if reason := collectives.first_text(running.problem):
            raise SaveFailed(f"{reason}; see to the disk of run.dir")

    def close(self) -> str:
        """Let the running save end, without the other ranks' help; why it failed, empty if it did not or none runs."""
        self._ending.set()
        if self._running is None:
            return ""
        running, self._running = self._running, None
        running.join()
        return running.problem

    def _make_room(self, temporary: Path) -> None:
        if collectives.is_first():
            self.check()
            for stale in self.checkpoints.glob(f"{TEMPORARY}*"):
                shutil.rmtree(stale)
            (temporary / SHARES).mkdir(parents=True)
            reached("room_made")

    def _write(self, temporary: Path, step: int, training: str, timing: tuple[float, float]) -> str:
        """The thread's work; returns what went wrong, for `wait`, so that no rank waits for ever."""
        start, problem = time.perf_counter(), ""
        try:
            self._write_own(temporary)
        except Exception as error:
            problem = f"checkpoint: could not write it (rank {self._rank}: {_clause(error)})"
        if self._rank > 0:
            return problem
        try:
            self._complete(temporary, step, training)
        except Exception as error:
            whose = f"write it ({error})" if isinstance(error, ShareFailed) else f"complete it ({_clause(error)})"
            shutil.rmtree(temporary, ignore_errors=True)  # half a checkpoint would keep the disk full
            return problem or f"checkpoint: could not {whose}"
        left = self._tidy(step)
        try:
            self.tell(Saved(step, *timing, time.perf_counter() - start, left))
        except Exception as error:
            return f"checkpoint: {step_folder(self.checkpoints, step)} is complete, not logged ({_clause(error)})"
        return problem

    def _write_own(self, temporary: Path) -> None:
        try:
            record = write_rank_file(temporary, self._rank, self._snapshot.pieces, self._snapshot.buffers)
            tell_done(temporary, self._rank, record)
        except Exception as error:
            (temporary / rank_file(self._rank)).unlink(missing_ok=True)  # makes room for the word of it
            tell_failed(temporary, self._rank, _clause(error))
            raise
        reached("share_told")

    def _complete(self, temporary: Path, step: int, training: str) -> None:
        records = wait_for_shares(temporary, self._ranks, self._is_ending)
        reached("shares_complete")
        shutil.rmtree(temporary / SHARES)
        pieces = [piece for rank in range(self._ranks) for piece in read_pieces(temporary, rank)]
        write_common_files(temporary, Index(pieces), training, self.texts)
        final = step_folder(self.checkpoints, step)
        self.complete()  # the logs up to here are on the disk before a session can go on from here
        commit(temporary, final, step, self.layout, {rank_file(rank): record for rank, record in enumerate(records)})

    def _tidy(self, step: int) -> str:
        """What follows on a complete checkpoint; what could not be done, which does not undo the save."""
        doing = "move `latest`"
        try:
            point_latest(self.checkpoints, step_folder(self.checkpoints, step))
            reached("latest_moved")
            doing = "remove an old one"
            prune(self.checkpoints, self.keep, step)
        except OSError as error:
            return f"checkpoint: could not {doing} ({_clause(error)}); see to the disk of run.dir"
        return ""

    def _is_ending(self) -> bool:
        return self._ending.is_set() or not threading.main_thread().is_alive()


def _clause(error: BaseException) -> str:
    """One line of an error."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _together(action: Callable[[], None], doing: str) -> None:
    """Run `action` on this rank, then fail on every rank if it failed on any."""
    problem = ""
    try:
        action()
    except OSError as error:
        problem = f"{_clause(error)}); see to the disk of run.dir"
    except Exception as error:
        problem = f"{_clause(error)})"
    if reason := collectives.first_text(problem):
        raise SaveFailed(f"checkpoint: could not {doing} it ({reason}")
