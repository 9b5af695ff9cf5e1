"""A thread a rank that notices when training stands still, says who is to blame, and ends the job.

Each rank writes a heartbeat; a rank that is stuck, or whose neighbour has fallen silent, claims to speak for all,
looks at every rank's heartbeat, and pronounces a verdict once no rank moves. All live ranks then write their stacks
and end. Time is counted in this thread's own rounds, so that a job which was suspended as a whole is not stuck.
"""

from __future__ import annotations

import faulthandler
import os
import re
import socket
import sys
import threading
import time
import traceback
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from torch import distributed as dist

from pretrain.config.schema import WatchdogSection
from pretrain.errors import EXIT_CRASHED, EXIT_DONE, EXIT_HANG, UserError
from pretrain.parallel import collectives
from pretrain.resilience.claim import Claim
from pretrain.resilience.diagnosis import Verdict, collective_here, crash, diagnose
from pretrain.resilience.heartbeat import Beat, Peers, Status, write_beat
from pretrain.resilience.limits import CHECKPOINT, FIRST_STEP, START, Limits
from pretrain.resilience.marks import Marks
from pretrain.training.callback import Callback
from pretrain.training.loop import StepReport, Trainer
from pretrain.training.run_folder import RunFolder

BEATS = 30
"""Heartbeats in `watchdog.timeout`, at the least one in LONGEST_BEAT."""
LONGEST_BEAT = 2.0
SILENT_BEATS = 5
"""Missed beats after which a rank does not answer, once training stands still anyway."""
LOST = re.compile(r"Connection (closed|reset|refused)|closed by peer|Broken pipe|gloo/transport|NCCL", re.IGNORECASE)


class Watchdog(Callback):
    """A callback that also watches start and end; enter it once the process group is there.

    Args:
        folder: the run's folder.
        section: `watchdog` of the experiment; a timeout of 0 switches everything off but the message on a lost peer.
        local_world_size: ranks of this machine.
    """

    def __init__(self, folder: Path, section: WatchdogSection, local_world_size: int = 1):
        self.folder, self.logs, self.timeout = folder, folder / "logs", section.timeout
        self.limits = Limits(section.timeout, section.first_step, section.save)
        self.local_world_size = max(1, local_world_size)
        self.interval = min(LONGEST_BEAT, section.timeout / BEATS)
        self.host = socket.gethostname()
        self.marks = Marks()
        self.trainer: Trainer | None = None
        self.step, self.first_done = 0, False
        self.still, self.number, self.exit_code = 0.0, 0, EXIT_DONE
        self.observed = self._unsaid = 0.0
        self._failed = False
        self._seen: tuple[Any, ...] = ()
        self._status: Status = "runs"
        self._closed, self._explaining = threading.Event(), False

    # --- what the main thread does

    def __enter__(self) -> Watchdog:
        """Collective."""
        self.rank, self.size = collectives.rank(), collectives.world_size()
        if not self.timeout:
            return self
        self.logs.mkdir(parents=True, exist_ok=True)
        session = collectives.share_text(f"{time.strftime('%Y%m%dT%H%M%S')}_{uuid.uuid4().hex[:6]}")
        self.session, self.claim = session, Claim(self.logs, session)
        others = [rank for rank in range(self.size) if rank != self.rank]
        near = {(self.rank + distance) % self.size for distance in (1, self.local_world_size)} - {self.rank}
        self.others, self.neighbours = Peers(self.logs, others, session), Peers(self.logs, near, session)
        self._beat()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and _peer_lost(error):
            self._explain(error)
        if not self.timeout:
            return
        self._closed.set()
        self._thread.join(5.0)
        if isinstance(error, Exception):
            code = error.exit_code if isinstance(error, UserError) else EXIT_CRASHED
            with suppress(OSError):
                if self.claim.take(self.rank):
                    verdict = crash(self.rank, error)
                    self.claim.pronounce(self.rank, verdict)
                    self._event("crash", verdict)
            self._last_words("crashed", code)
        else:
            self._last_words("ended", EXIT_DONE)

    def on_start(self, trainer: Trainer) -> None:
        self.trainer, self.step = trainer, trainer.progress.step
        if self.timeout:
            self.marks.listen(trainer.engine.layers)

    def on_step_begin(self, trainer: Trainer, step: int) -> None:
        self.step = step
        self.marks.begin_step()

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        self.first_done = True

    def on_close(self, trainer: Trainer) -> None:
        self.marks.close()

    # --- what the thread does

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._closed.wait(self.interval):
            now = time.monotonic()
            elapsed, last = min(now - last, 2 * self.interval), now
            try:
                self._round(elapsed)
            except OSError:  # a file system in trouble: nothing can be said of others, and training may go on
                if self.still > 2 * (self.limits.limit(self.doing) + self.timeout):
                    _say(f"error: rank {self.rank} stood still for {self.still:.0f} s, and {self.logs} does not answer")
                    os._exit(EXIT_HANG)
            except Exception as error:  # a defect here must not end the heartbeats: this rank would look dead
                if not self._failed:
                    _say(f"warning: the watchdog of rank {self.rank} failed ({type(error).__name__}: {error})")
                self._failed = True
                with suppress(OSError):
                    self._beat()

    @property
    def doing(self) -> str:
        """What the main thread does, by name."""
        if self.trainer is None:
            return START
        named = self.trainer.doing
        return named if self.first_done or named == CHECKPOINT else FIRST_STEP

    def _round(self, elapsed: float) -> None:
        self._count(elapsed)
        self._beat()
        if self._explaining:
            return
        if self.still < 2 * self.interval:
            self.claim.withdraw()
            self.neighbours.silence = dict.fromkeys(self.neighbours.silence, 0.0)
            return
        code = self.claim.exit_code()
        if code is not None and not self.claim.mine:
            self._follow(code)
        self.neighbours.look(elapsed)
        lost = self.still >= self.timeout and self.neighbours.silent(self.timeout)
        if self.claim.mine:
            self.others.look(elapsed)
            self.observed += elapsed
            self._judge(bool(lost))
        elif lost or self.still > self.limits.limit(self.doing) + min(self.rank, 2) * self.interval:
            # Lower ranks first, so that mostly rank 0 speaks.
            if not self.claim.take(self.rank):
                self._watch_holder(elapsed)
            self.others.silence, self.observed = dict.fromkeys(self.others.silence, 0.0), 0.0

    def _count(self, elapsed: float) -> None:
        """Whether the main thread has passed a mark since the last round."""
        seen = (self.doing, self.step, self.marks.reached.marks)
        if seen != self._seen:
            if self._seen:
                self.limits.saw(self._seen[0], self.still + elapsed)
            self._seen, self.still = seen, 0.0
        else:
            self.still += elapsed

    def _beat(self) -> None:
        self.number += 1
        write_beat(self.logs, self._state())

    def _last_words(self, status: Status, exit_code: int) -> None:
        self._status, self.exit_code = status, exit_code
        with suppress(OSError):
            self._beat()

    def _state(self) -> Beat:
        marks, stands = self.marks, self.still >= 2 * self.interval
        return Beat(
            session=self.session,
            rank=self.rank,
            host=self.host,
            pid=os.getpid(),
            number=self.number,
            step=self.step,
            phase=self.doing,
            layer=marks.reached.layer,
            direction=marks.direction,
            micro_batch=marks.micro_batch,
            marks=marks.reached.marks,
            still=self.still,
            overdue=self.still > self.limits.limit(self.doing),
            waits_in=collective_here() if stands else "",
            status=self._status,
            exit_code=self.exit_code,
        )

    def _watch_holder(self, elapsed: float) -> None:
        """Another rank speaks; if it has died meanwhile, the next claim is open."""
        holder = self.claim.holder()
        self._unsaid = self._unsaid + elapsed if holder is None and self.claim.is_empty() else 0.0
        if self._unsaid > self.timeout / 2:
            self._unsaid = 0.0
            self.claim.next()
        if holder is not None and holder != self.rank:
            if holder not in self.neighbours.last:
                self.neighbours.last[holder], self.neighbours.silence[holder] = None, 0.0
            if holder in self.neighbours.silent(self.timeout / 2):
                self.claim.next()

    def _judge(self, lost: bool) -> None:
        """Speak if nobody moves, or somebody who would have to move is silent."""
        patience = SILENT_BEATS * self.interval
        silent = self.others.silent(patience)
        beats = {**self.others.last, self.rank: self._state()}
        stuck = all(
            rank in silent or (beat is not None and (beat.over or beat.overdue)) for rank, beat in beats.items()
        )
        if (stuck and self.observed >= patience) or (lost and silent):
            self._conclude(diagnose(beats, silent, self.still), silent)

    # --- the end

    def _conclude(self, verdict: Verdict, silent: set[int], dump: bool = True) -> None:
        """Pronounce, wait for the stacks of those that live, say it, and end this process."""
        if dump:
            self._dump()
        with suppress(OSError):
            self.claim.pronounce(self.rank, verdict)
        for _ in range(SILENT_BEATS):
            waiting = [r for r, beat in self.others.last.items() if r not in silent and beat and beat.status == "runs"]
            if not waiting:
                break
            time.sleep(self.interval)
            self.others.look(self.interval)
        with suppress(OSError):
            self._event("hang", verdict)
        where = self.logs / "stacks_rank_N.txt"
        _say(f"error: {verdict.reason}; stacks in {where}; run the same command again to go on")
        os._exit(verdict.exit_code)

    def _follow(self, code: int) -> None:
        """Another rank has pronounced: leave the stacks and end, after it has spoken."""
        self._dump()
        time.sleep(2 * SILENT_BEATS * self.interval)
        os._exit(code)

    def _explain(self, error: BaseException) -> None:
        """The main thread has lost a connection: find out whom, say it once, and end this process."""
        if not self.timeout:
            _say(f"error: rank {self.rank} lost the connection to another rank ({_line(error)}); run the same command")
            os._exit(EXIT_HANG)
        self._explaining, self._status = True, "dumped"
        with suppress(OSError), self._stacks() as file:
            traceback.print_exception(error, file=file)
        everybody = self.others
        for _ in range(2 * SILENT_BEATS):
            everybody.look(self.interval)
            code = self.claim.exit_code()
            silent = everybody.silent(SILENT_BEATS * self.interval) | everybody.gone(self.host)
            failed = any(beat and beat.over and beat.exit_code for beat in everybody.last.values())
            if code is not None or silent or failed:
                break
            time.sleep(self.interval)
        if code is None and self.claim.take(self.rank):
            verdict = diagnose({**everybody.last, self.rank: self._state()}, silent, self.still)
            if not silent and not failed:
                reason = f"the connection between ranks broke, though all still answer ({_line(error)})"
                verdict = Verdict((), reason, EXIT_HANG, verdict.reached)
            self._conclude(verdict, silent, dump=False)
        for _ in range(2 * SILENT_BEATS):
            if (code := self.claim.exit_code()) is not None:
                break
            time.sleep(self.interval)
        time.sleep(2 * self.interval)  # a launcher ends all ranks when one has ended: let the other speak
        os._exit(EXIT_HANG if code is None else code)

    def _dump(self) -> None:
        """Write the stacks of all threads of this process, and say in the heartbeat that they are there."""
        state, self._status = self._state(), "dumped"
        with suppress(OSError):
            with self._stacks() as file:
                file.write(f"rank {self.rank}, {state.place}, without progress for {self.still:.0f} s\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            self._beat()

    def _stacks(self) -> TextIO:
        return (self.logs / f"stacks_rank_{self.rank}.txt").open("w", encoding="utf-8")

    def _event(self, name: str, verdict: Verdict) -> None:
        """By whichever rank speaks: the folder's own writer may be the one that is stuck."""
        RunFolder(self.folder, writes=True).event(
            name,
            self.step,
            reason=verdict.reason,
            ranks=list(verdict.ranks),
            exit_code=verdict.exit_code,
            reached=list(verdict.reached),
        )


def _peer_lost(error: BaseException) -> bool:
    """Whether a collective failed because of another rank: gloo says it in words, torch by type."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and bool(LOST.search(str(error))))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _say(line: str) -> None:
    """To stderr, past Python's buffer, whose lock the stuck thread may hold."""
    os.write(2, (("\n" if sys.stderr.isatty() else "") + line + "\n").encode())
