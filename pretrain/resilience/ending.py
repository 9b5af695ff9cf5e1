"""How a rank ends when it stands still, or has lost another: stacks, one line from one rank, the same exit code."""

from __future__ import annotations

import faulthandler
import os
import re
import sys
import time
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

from pretrain.errors import EXIT_HANG, EXIT_WRONG_INPUT
from pretrain.resilience.board import real
from pretrain.resilience.diagnosis import Verdict, diagnose
from pretrain.resilience.limits import DATA, IMPORTS
from pretrain.training.run_folder import RunFolder

if TYPE_CHECKING:
    from pretrain.resilience.watchdog import Watchdog

LOOKS = 5
"""Heartbeats for which the word of others is waited for."""
OWN_WORD = 5.0
"""Seconds in which rank 0 should meet by itself what another rank has refused."""
LOST = re.compile(r"Connection (closed|reset|refused)|closed by peer|Broken pipe|gloo/transport|NCCL", re.IGNORECASE)


class Ending:
    """The last acts of a watchdog; all but `event` end this process.

    Args:
        watch: whose ranks and board are used.
    """

    def __init__(self, watch: Watchdog):
        self.watch = watch

    def conclude(self, verdict: Verdict, silent: set[int], dump: bool = True) -> None:
        """Pronounce, wait for the stacks of those that live, say it, and end this process."""
        watch, others = self.watch, self.watch.ranks.others
        if dump:
            self._dump()
        with suppress(OSError):
            watch.ranks.claim.pronounce(watch.rank, verdict)
        for _ in range(LOOKS):
            waiting = [r for r, beat in others.last.items() if r not in silent and beat and beat.status == "runs"]
            if not waiting:
                break
            time.sleep(watch.interval)
            others.look(watch.interval)
        with suppress(OSError):
            self.event("hang", verdict)
        stacks = self.watch.board.stacks
        where = f"stacks in {real(stacks) / 'stacks_rank_N.txt'}; " if stacks is not None else ""
        say(f"error: {verdict.reason}; {where}run the same command again to go on")
        os._exit(verdict.exit_code)

    def follow(self, verdict: dict[str, Any]) -> None:
        """Another rank has pronounced: leave the stacks and end, after it has spoken."""
        watch, code, unsaid = self.watch, int(verdict["exit_code"]), str(verdict.get("unsaid", ""))
        if code == EXIT_WRONG_INPUT:
            # A launcher ends this rank when the other one has; and the checks here may find the same by themselves.
            patience = OWN_WORD if watch.doing in (IMPORTS, DATA) else 0.0
        else:
            self._dump()
            patience = max(2 * LOOKS * watch.interval, OWN_WORD if unsaid else 0.0)
        if watch.closed.wait(patience):
            return  # the main thread ends by itself
        if unsaid and watch.rank == 0:
            say(f"error: {unsaid}")
        os._exit(code)

    def explain(self, error: BaseException) -> None:
        """The main thread has lost a connection: find out whom, say it once, and end this process."""
        watch, others, claim = self.watch, self.watch.ranks.others, self.watch.ranks.claim
        if not watch.timeout:
            say(f"error: rank {watch.rank} lost the connection to another rank ({_line(error)}); run the same command")
            os._exit(EXIT_HANG)
        watch.explaining, watch.status = True, "dumped"
        with suppress(OSError), self._stacks() as file:
            traceback.print_exception(error, file=file)
        for _ in range(2 * LOOKS):
            others.look(watch.interval)
            verdict = claim.verdict()
            silent = others.silent(LOOKS * watch.interval) | others.gone()
            failed = any(beat and beat.over and beat.exit_code for beat in others.last.values())
            if verdict is not None or silent or failed:
                break
            time.sleep(watch.interval)
        if verdict is None and claim.take(watch.rank):
            found = diagnose({**others.last, watch.rank: watch.state()}, silent, watch.still)
            if not silent and not failed:
                reason = f"the connection between ranks broke, though all still answer ({_line(error)})"
                found = Verdict((), reason, EXIT_HANG, found.reached)
            self.conclude(found, silent, dump=False)
        for _ in range(2 * LOOKS):
            if (verdict := claim.verdict()) is not None:
                break
            time.sleep(watch.interval)
        time.sleep(2 * watch.interval)  # a launcher ends all ranks when one has ended: let the other speak
        if verdict is not None and verdict.get("unsaid") and watch.rank == 0:
            say(f"error: {verdict['unsaid']}")
        os._exit(EXIT_HANG if verdict is None else int(verdict["exit_code"]))

    def event(self, name: str, verdict: Verdict) -> None:
        """By whichever rank speaks: the folder's own writer may be the one that is stuck."""
        folder = self.watch.folder
        if folder is not None and folder.is_dir():
            RunFolder(folder, writes=True).event(
                name,
                self.watch.step,
                reason=verdict.reason,
                ranks=list(verdict.ranks),
                exit_code=verdict.exit_code,
                reached=list(verdict.reached),
            )

    def _dump(self) -> None:
        """Write the stacks of all threads of this process, and say in the heartbeat that they are there."""
        watch = self.watch
        state, watch.status = watch.state(), "dumped"
        with suppress(OSError):
            with self._stacks() as file:
                file.write(f"rank {watch.rank}, {state.place}, without progress for {watch.still:.0f} s\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            watch.beat()

    def _stacks(self) -> TextIO:
        folder = self.watch.board.stacks
        if folder is None:
            raise FileNotFoundError("there is no folder yet")
        return (folder / f"stacks_rank_{self.watch.rank}.txt").open("w", encoding="utf-8")


def peer_lost(error: BaseException) -> bool:
    """Whether a collective failed because of another rank: gloo says it in words, torch by type."""
    distributed = sys.modules.get("torch.distributed")
    by_type = distributed is not None and isinstance(error, distributed.DistError)
    return by_type or (isinstance(error, RuntimeError) and bool(LOST.search(str(error))))


def say(line: str) -> None:
    """To stderr, past Python's buffer, whose lock the stuck thread may hold."""
    with suppress(OSError):
        os.write(2, (("\n" if sys.stderr.isatty() else "") + line + "\n").encode())


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
