"""Whether a run that has ended is to be started again: a loop in a shell or a batch script asks after each session."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pretrain.command_line import Parser, positive, run
from pretrain.errors import EXIT_DONE, EXIT_HANG, EXIT_INTERRUPTED, EXIT_ORPHANED, EXIT_STOPPED_BY_SIGNAL
from pretrain.state.files import replace_text
from pretrain.state.reader import list_checkpoints
from pretrain.state.run_files import CHECKPOINTS
from pretrain.state.run_files import events as events_of

EXAMPLE = """example:
  trap 'exit 130' INT
  python tools/again.py runs/demo --first
  while :; do
      deepspeed --num_gpus 2 pretrain/train.py --recipe demo
      python tools/again.py runs/demo || break
  done

Exit code 0: start it again. 1: do not; a line on stderr says why. After a stop by a signal, a hang, a lost rank or
`kill -9` it is to be started again; when done, after wrong input or a crash, or when restarts bring no newer
checkpoint, it is not."""
NO = 1
RESTARTABLE = (EXIT_STOPPED_BY_SIGNAL, EXIT_ORPHANED, EXIT_HANG)
KILLED = 128
"""Shells and srun say 128 + N of a process that signal N has ended."""
PATIENCE = 3
COUNTS = "restarts.json"


@dataclass(frozen=True)
class Counts:
    """What the last question left in RUN/restarts.json."""

    sessions: int = 0
    """Signs of sessions in events.jsonl: begun, hung or crashed."""
    step: int = 0
    """Newest checkpoint."""
    without_progress: int = 0
    """Restarts in a row that brought no newer one."""


def restartable(status: int) -> bool:
    """Whether a rank's exit code (or srun's) says that the same command may go on: not done, wrong input or a crash."""
    return status in RESTARTABLE or (status > KILLED and status != EXIT_INTERRUPTED)


def why_not(folder: Path, status: int | None, patience: int) -> str:
    """Why the run must not be started again; empty if it is to be. Counts the answer in RUN/restarts.json.

    Args:
        folder: the run's.
        status: exit code of the session, as srun reports it; None where the launcher hides it, as `deepspeed` does:
            then the run's own events tell.
        patience: restarts in a row without a newer checkpoint.
    """
    before, events = _counts(folder), list(events_of(folder))
    sessions, step = _sessions(events), _newest_step(folder)
    reason = _status_says(status) if status is not None else _events_say(events, sessions > before.sessions)
    tries = 0 if step > before.step else before.without_progress
    if not reason and tries >= patience:
        reason = (
            f"{tries} restarts brought no checkpoint beyond step {step}; see {folder / 'logs'}, then start it by hand"
        )
    # A run that somebody starts again by hand has all its tries again.
    if folder.is_dir():
        _write(folder, Counts(sessions, step, 0 if reason else tries + 1))
    return reason


def take_stock(folder: Path) -> None:
    """Before the first session: what is in the folder belongs to earlier ones."""
    if folder.is_dir():
        _write(folder, Counts(_sessions(list(events_of(folder))), _newest_step(folder), 0))


def _status_says(status: int) -> str:
    if status == EXIT_DONE:
        return "done"
    return "" if restartable(status) else f"exit code {status} would only repeat itself"


def _events_say(events: Sequence[dict[str, Any]], new_session: bool) -> str:
    if not new_session:
        return "no session has begun since the last restart: wrong input, or the launcher failed"
    for event in reversed(events):
        if event["event"] == "end" and isinstance(event.get("exit_code"), int):
            return _status_says(event["exit_code"])
        if event["event"] in ("crash", "hang"):
            return "" if event["event"] == "hang" else f"it crashed and would again: {event.get('reason')}"
        if event["event"] in ("start", "resume"):
            break
    return ""  # killed: nobody could say anything


def _counts(folder: Path) -> Counts:
    try:
        return Counts(**json.loads((folder / COUNTS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Counts()


def _write(folder: Path, counts: Counts) -> None:
    replace_text(folder / COUNTS, json.dumps(asdict(counts)) + "\n")


def _sessions(events: Sequence[dict[str, Any]]) -> int:
    return sum(event["event"] in ("start", "resume", "hang", "crash") for event in events)


def _newest_step(folder: Path) -> int:
    found = list_checkpoints(folder / CHECKPOINTS)
    return int(found[0].name.rpartition("_")[2]) if found else 0


def _parser() -> Parser:
    parser = Parser(version=True, prog="tools/again.py", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("--first", action="store_true", help="take stock before the first session; answers 0")
    parser.add_argument("--status", type=int, metavar="N", help="exit code of a rank or of srun (not of `deepspeed`)")
    parser.add_argument(
        "--patience",
        type=positive,
        default=PATIENCE,
        metavar="P",
        help=f"restarts in a row without a newer checkpoint (default {PATIENCE})",
    )
    return parser


def answer(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """The exit code; a refusal is said."""
    if arguments.first:
        take_stock(arguments.run)
        return EXIT_DONE
    reason = why_not(arguments.run, arguments.status, arguments.patience)
    if reason:
        say(f"{arguments.run}: not started again: {reason}")
    return NO if reason else EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of tools/again.py; returns its exit code."""
    arguments = _parser().parse_args(argv)
    return run(lambda: answer(arguments, lambda line: print(line, file=sys.stderr, flush=True)))


if __name__ == "__main__":
    sys.exit(main())
