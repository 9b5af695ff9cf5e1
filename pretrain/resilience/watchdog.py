"""A thread a rank that notices when a session stands still, says who is to blame, and ends the job.

Each rank writes a heartbeat, from its first imports on; a rank that is stuck, or whose neighbour has fallen silent,
claims to speak for all, looks at every rank's heartbeat, and pronounces a verdict once no rank moves. All live ranks
then write their stacks and end. Time is counted in this thread's own rounds, so that a job which was suspended as a
whole is not stuck, and a machine that is too busy for this thread counts slowly.

Nothing of torch is imported here at first, so that the imports themselves are watched.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pretrain.errors import EXIT_DONE, EXIT_HANG, FolderLost
from pretrain.launch.environment import RankEnvironment
from pretrain.resilience.board import board_of, launch_key, real
from pretrain.resilience.claim import Claim
from pretrain.resilience.diagnosis import code_of, collective_here, crash, diagnose
from pretrain.resilience.ending import Ending, peer_lost, say
from pretrain.resilience.heartbeat import Beat, Peers, Status, write_beat
from pretrain.resilience.limits import CHECKPOINT, DATA, FIRST_STEP, IMPORTS, STARTING, Limits
from pretrain.resilience.machine import born, clock, identity
from pretrain.resilience.sources import Launch, Session
from pretrain.state.run_files import LOGS
from pretrain.training.callback import Callback

if TYPE_CHECKING:
    from pretrain.config.schema import WatchdogSection
    from pretrain.resilience.marks import Marks
    from pretrain.training.loop import StepReport, Trainer

BEATS = 30
"""Heartbeats in `watchdog.timeout`, at the least one in LONGEST_BEAT."""
LONGEST_BEAT = 2.0
SILENT_BEATS = 5
"""Missed beats after which a rank does not answer, once training stands still anyway."""


@dataclass(frozen=True)
class Ranks:
    """Of one session, as this rank sees them."""

    source: Session | Launch
    claim: Claim
    others: Peers
    neighbours: Peers
    """The next rank, and the same one of the next machine."""


class Watchdog(Callback):
    """A context around a whole session, and a callback in it.

    On entering it begins to beat; `guard` tells it what to watch for, `now` what this rank is doing before there is a
    trainer, `joined` that all ranks are there.

    Args:
        environment: this rank's place.
    """

    def __init__(self, environment: RankEnvironment):
        self.rank, self.size = environment.rank, environment.world_size
        self.local_world_size = max(1, environment.local_world_size)
        self.host, self._birth = socket.gethostname(), born()
        key = launch_key(environment, os.environ)
        self.board = board_of(environment, os.environ, key)
        self._launch = Launch(self.board, self.rank, key.name, self._birth)
        self.timeout, self.interval = 0.0, LONGEST_BEAT
        self.limits = Limits(0.0, 0.0, 0.0)
        self.guards = False
        """Whether this rank judges others; before, it only beats."""
        self.phase = IMPORTS
        self.marks: Marks | None = None
        self.trainer: Trainer | None = None
        self.step, self.first_done, self.has_joined = 0, False, False
        self.still, self.number, self.exit_code = 0.0, 0, EXIT_DONE
        self.observed = self._unsaid = 0.0
        self.explaining = self._failed = False
        self._seen: tuple[Any, ...] = ()
        self.status: Status = "runs"
        self.closed = threading.Event()
        self._thread: threading.Thread | None = None
        self.ranks = self._see(self._launch)
        self.ending = Ending(self)

    # --- what the main thread does

    def __enter__(self) -> Watchdog:
        if self.board.early is not None:
            self._start()
        return self

    def guard(self, folder: Path, section: WatchdogSection) -> None:
        """Begin to judge.

        Args:
            folder: the run's, which need not exist.
            section: `watchdog` of the experiment; a timeout of 0 switches everything off but the message on a lost
                peer.
        """
        self.timeout = section.timeout
        if not self.timeout:
            self._stop()
            self.board.leave(self._launch.early_name)
            return
        self.limits = Limits(section.timeout, section.first_step, section.save, section.start)
        self.interval = min(LONGEST_BEAT, section.timeout / BEATS)
        self.board.logs = folder / LOGS
        self.phase, self.guards = DATA, True
        self._start()

    def now(self, phase: str) -> None:
        """What this rank does from now on, until there is a trainer."""
        self.phase = phase

    def joined(self) -> None:
        """All ranks have met, and agree on a name that no session had before. Collective."""
        from pretrain.parallel import collectives

        self.has_joined = True
        if self.timeout and self.board.logs is not None:
            self.board.logs.mkdir(parents=True, exist_ok=True)
            self.board.hold()
            stamp = f"{time.strftime('%Y%m%dT%H%M%S')}_{uuid.uuid4().hex[:6]}"
            # The first rank's name for the launch: of several machines, each may have its own.
            name = collectives.share_text(f"{self._launch.name}_{stamp}")
            self.ranks = self._see(Session(self.board, self.rank, name))
            with suppress(OSError):
                self.beat()
            self.board.leave(self._launch.early_name)
            if self.rank == 0:  # it holds the folder
                for left in self.board.logs.glob("start_*"):
                    left.unlink(missing_ok=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self.size > 1 and peer_lost(error):
            self.ending.explain(error)
        self._stop()
        if error is None:
            self._last_words("ended", EXIT_DONE)
            self.board.leave(self._launch.early_name)
            return
        if isinstance(error, FolderLost):  # met by every rank; the folder may be another session's
            return
        with suppress(OSError):
            claim, verdict = self.ranks.claim, crash(self.rank, error)
            if claim.take(self.rank):
                claim.pronounce(self.rank, verdict)
                if self.has_joined:  # before, nothing has begun
                    self.ending.event("crash", verdict)
        self._last_words("crashed", code_of(error))

    def on_start(self, trainer: Trainer) -> None:
        from pretrain.resilience.marks import Marks

        self.step = trainer.progress.step
        if self.timeout:
            self.marks = Marks()
            self.marks.listen(trainer.engine.layers)
        self.trainer = trainer

    def on_step_begin(self, trainer: Trainer, step: int) -> None:
        self.step = step
        if self.marks is not None:
            self.marks.begin_step()

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        self.first_done = True

    def on_close(self, trainer: Trainer) -> None:
        if self.marks is not None:
            self.marks.close()

    @property
    def folder(self) -> Path | None:
        """The run's, wherever it is now; None if it is not known yet."""
        return real(self.board.logs).parent if self.board.logs is not None else None

    def _see(self, source: Session | Launch) -> Ranks:
        others = [rank for rank in range(self.size) if rank != self.rank]
        near = {(self.rank + distance) % self.size for distance in (1, self.local_world_size)} - {self.rank}
        return Ranks(source, Claim(self.board, source), Peers(source, others), Peers(source, near))

    def _start(self) -> None:
        with suppress(OSError):
            self.beat()
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def _stop(self) -> None:
        self.closed.set()
        if self._thread is not None:
            self._thread.join(5.0)

    # --- what the thread does

    def _watch(self) -> None:
        last = time.monotonic()
        while not self.closed.wait(self.interval):
            now = time.monotonic()
            elapsed, last = min(now - last, 2 * self.interval), now
            try:
                self._round(elapsed)
            except OSError:  # a file system in trouble: nothing can be said of others, and training may go on
                if self.guards and self.still > 2 * (self.limits.limit(self.doing) + self.timeout):
                    say(f"error: rank {self.rank} stood still for {self.still:.0f} s; {self.folder} does not answer")
                    os._exit(EXIT_HANG)
            except Exception as error:  # a defect here must not end the heartbeats: this rank would look dead
                if not self._failed:
                    say(f"warning: the watchdog of rank {self.rank} failed ({type(error).__name__}: {error})")
                self._failed = True
                with suppress(OSError):
                    self.beat()

    @property
    def doing(self) -> str:
        """What the main thread does, by name."""
        if self.trainer is None:
            return self.phase
        named = self.trainer.doing
        return named if self.first_done or named == CHECKPOINT else FIRST_STEP

    def _round(self, elapsed: float) -> None:
        self._count(elapsed)
        self.beat()
        if self.explaining or not self.guards:
            return
        claim, others, neighbours = self.ranks.claim, self.ranks.others, self.ranks.neighbours
        if self.still < 2 * self.interval:
            claim.withdraw()
            if self.doing not in STARTING:  # a rank that moves in training has heard from the others
                neighbours.silence = dict.fromkeys(neighbours.silence, 0.0)
            return
        if not claim.mine and (verdict := claim.verdict()) is not None:
            self.ending.follow(verdict)
        neighbours.look(elapsed)
        lost = neighbours.lost(self.limits, SILENT_BEATS * self.interval)
        if claim.mine:
            others.look(elapsed)
            self.observed += elapsed
            self._judge(bool(lost))
        elif lost or self.still > self.limits.limit(self.doing) + min(self.rank, 2) * self.interval:
            # Lower ranks first, so that mostly rank 0 speaks.
            if not claim.take(self.rank):
                self._watch_holder(elapsed)
            others.silence = {rank: neighbours.silence.get(rank, 0.0) for rank in others.silence}
            others.last |= neighbours.last
            self.observed = 0.0

    def _count(self, elapsed: float) -> None:
        """Whether the main thread has passed a mark since the last round."""
        seen = (self.doing, self.step, self.marks.reached.marks if self.marks is not None else 0)
        if seen != self._seen:
            if self._seen:
                self.limits.saw(self._seen[0], self.still + elapsed)
            self._seen, self.still = seen, 0.0
        else:
            self.still += elapsed

    def beat(self) -> None:
        path = self.ranks.source.path
        if path is not None:
            self.number += 1
            write_beat(path, self.state())

    def _last_words(self, status: Status, exit_code: int) -> None:
        self.status, self.exit_code = status, exit_code
        if self._thread is not None:
            with suppress(OSError):
                self.beat()

    def state(self) -> Beat:
        marks, stands = self.marks, self.still >= 2 * self.interval
        return Beat(
            session=self.ranks.source.name,
            rank=self.rank,
            host=self.host,
            pid=os.getpid(),
            number=self.number,
            step=self.step,
            phase=self.doing,
            layer=marks.reached.layer if marks is not None else "",
            direction=marks.direction if marks is not None else "",
            micro_batch=marks.micro_batch if marks is not None else 0,
            marks=marks.reached.marks if marks is not None else 0,
            still=self.still,
            overdue=self.guards and self.still > self.limits.limit(self.doing),
            waits_in=collective_here() if stands else "",
            status=self.status,
            exit_code=self.exit_code,
            machine=identity(),
            clock=clock(),
            born=self._birth,
        )

    def _watch_holder(self, elapsed: float) -> None:
        """Another rank speaks; if it has died meanwhile, the next claim is open."""
        claim, neighbours = self.ranks.claim, self.ranks.neighbours
        holder = claim.holder()
        self._unsaid = self._unsaid + elapsed if holder is None and claim.is_empty() else 0.0
        if self._unsaid > self.timeout / 2:
            self._unsaid = 0.0
            claim.next()
        if holder is not None and holder != self.rank:
            if holder not in neighbours.last:
                neighbours.last[holder], neighbours.silence[holder] = None, 0.0
            if holder in neighbours.silent(self.timeout / 2):
                claim.next()

    def _judge(self, lost: bool) -> None:
        """Speak if nobody moves, or somebody who would have to move will not."""
        others, patience = self.ranks.others, SILENT_BEATS * self.interval
        silent, beats = others.silent(patience), {**others.last, self.rank: self.state()}
        gone = others.lost(self.limits, patience)
        stuck = all(
            rank in silent or (beat is not None and (beat.over or beat.overdue)) for rank, beat in beats.items()
        )
        if lost and gone:
            self.ending.conclude(diagnose(beats, gone, self.still), gone)
        elif stuck and self.observed >= patience:
            self.ending.conclude(diagnose(beats, silent, self.still), silent)
