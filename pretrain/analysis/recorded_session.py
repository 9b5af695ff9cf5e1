"""How the last session of a run stands, by its events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

BEGUN = ("start", "resume")
ENDED = {"signal": "stopped by a signal", "end": "ended", "crash": "crashed", "hang": "hung, and was ended"}


def how_it_ended(events: Iterable[Mapping[str, Any]]) -> str:
    """Why the newest session ended, in words; empty while it runs, or where it left no word (kill -9)."""
    told = [event for event in events if event.get("event") in (*BEGUN, *ENDED)]
    if not told or told[-1]["event"] in BEGUN:
        return ""
    kind, reason = told[-1]["event"], str(told[-1].get("reason") or "")
    if kind in ("crash", "hang"):
        return f"{ENDED[kind]}: {reason}" if reason else ENDED[kind]
    return reason or ENDED[kind]
