"""Who is to blame: what the ranks' last beats say, as one line and an event."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from pretrain.errors import EXIT_CRASHED, EXIT_HANG, EXIT_INTERRUPTED, UserError
from pretrain.resilience.heartbeat import Beat

NAMED = 8
"""More ranks than these are counted, not listed."""


@dataclass(frozen=True)
class Verdict:
    """Why the job ends."""

    ranks: tuple[int, ...]
    """The ranks that are to blame."""
    reason: str
    """One line."""
    exit_code: int
    reached: tuple[dict[str, Any], ...]
    """How far each rank had come."""
    unsaid: str = ""
    """A line that the rank which raised left to rank 0; empty if it has spoken."""


def diagnose(beats: Mapping[int, Beat | None], silent: set[int], still: float) -> Verdict:
    """Name the ranks that hold up the others.

    In this order: those that crashed, those that answer no more, those that stand still outside any collective while
    others wait in one, and else those that have come least far.

    Args:
        beats: the last beat of every rank; None where none was seen.
        silent: ranks that answer no more.
        still: seconds for which the rank that asks has stood still.
    """
    known = {rank: beat for rank, beat in beats.items() if beat is not None}
    running = {rank: beat for rank, beat in known.items() if not beat.over and rank not in silent}
    failed = {rank: beat for rank, beat in known.items() if beat.over and beat.exit_code}
    computing = [rank for rank, beat in running.items() if not beat.waits_in]
    if failed:
        ranks, code = sorted(failed), max(beat.exit_code for beat in failed.values())
        reason = f"{_names(ranks)} ended with exit code {code} ({_place(known, ranks[0])})"
        return Verdict(tuple(ranks), reason, code, _reached(beats, silent))
    if silent:
        ranks = sorted(silent)
        unseen = [rank for rank in ranks if rank not in known]
        seen = [rank for rank in ranks if rank in known]
        parts = [f"{_names(seen, known)} stopped answering ({_place(known, seen[0])})"] if seen else []
        parts += [f"no sign of life from {_names(unseen)} since {still:.0f} s"] if unseen else []
        reason = "; ".join(parts)
    elif running and len(computing) < len(running) and computing:
        ranks = sorted(computing)
        reason = f"{_names(ranks, known)} stood still for {still:.0f} s ({_place(known, ranks[0])}); the others wait"
    elif running:
        least = min((beat.step, beat.marks) for beat in running.values())
        ranks = sorted(rank for rank, beat in running.items() if (beat.step, beat.marks) == least)
        what = "waits in a collective" if not computing else "moves"
        whole = f"every rank {what}" if not computing else f"no rank {what}"
        reason = f"{whole} since {still:.0f} s; {_names(ranks, known)} came least far ({_place(known, ranks[0])})"
    else:
        ranks, reason = [], f"no other rank is left since {still:.0f} s"
    return Verdict(tuple(ranks), reason, EXIT_HANG, _reached(beats, silent))


def crash(rank: int, error: BaseException) -> Verdict:
    """A rank's own exception."""
    text = " ".join(str(error).split())[:500]
    # Of wrong input only rank 0 speaks, as all ranks mostly meet the same one.
    unsaid = f"rank {rank}: {text}" if isinstance(error, UserError) and rank > 0 else ""
    return Verdict((rank,), f"rank {rank} raised {type(error).__name__}: {text}", code_of(error), (), unsaid)


def code_of(error: BaseException) -> int:
    """With which code an error ends a rank."""
    if isinstance(error, UserError):
        return error.exit_code
    return EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else EXIT_CRASHED


def waits_in(frames: Mapping[int, FrameType], own: int) -> str:
    """The collective in which a thread of this process is, from the innermost frames; empty if none.

    A collective that a library calls without Python in between (NCCL's wait for the device) is not seen.

    Args:
        frames: of `sys._current_frames()`.
        own: id of the thread that asks.
    """
    for thread, frame in frames.items():
        if thread != own and "torch/distributed/" in frame.f_code.co_filename.replace("\\", "/"):
            return frame.f_code.co_name
    return ""


def collective_here() -> str:
    """`waits_in` of this process now."""
    return waits_in(sys._current_frames(), threading.get_ident())


def _names(ranks: Sequence[int], known: Mapping[int, Beat] | None = None) -> str:
    """`rank 1 (process 12 on host)`, or `ranks 1, 2 and 30 more`."""
    if len(ranks) == 1:
        beat = known.get(ranks[0]) if known else None
        return f"rank {ranks[0]}" + (f" (process {beat.pid} on {beat.host})" if beat else "")
    listed = ", ".join(str(rank) for rank in ranks[:NAMED])
    return f"ranks {listed}" + (f" and {len(ranks) - NAMED} more" if len(ranks) > NAMED else "")


def _place(known: Mapping[int, Beat], rank: int) -> str:
    return known[rank].place


def _reached(beats: Mapping[int, Beat | None], silent: set[int]) -> tuple[dict[str, Any], ...]:
    entries = []
    for rank, beat in sorted(beats.items()):
        entry: dict[str, Any] = {"rank": rank, "answers": rank not in silent}
        if beat is not None:
            keys = ("host", "pid", "step", "phase", "layer", "direction", "micro_batch", "waits_in", "status")
            entry |= {key: getattr(beat, key) for key in keys} | {"still": round(beat.still, 1)}
        entries.append(entry)
    return tuple(entries)
