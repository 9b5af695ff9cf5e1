"""A live terminal view of a run's folder, on this machine or another."""

from __future__ import annotations

import contextlib
import io
import sys

from rich.console import Console
from rich.live import Live

from pretrain.analysis.watch_follow import source
from pretrain.analysis.watch_keys import keys
from pretrain.analysis.watch_run import WatchedRun
from pretrain.analysis.watch_view import Choice, view
from pretrain.errors import UserError

HINT = "f: next figure   p: next part of the layers   q or Ctrl-C: leave (the run goes on)"


def watch(target: str, choice: Choice, seconds: float, once: bool) -> None:
    """Show the run in `target`, a folder or HOST:FOLDER, until q, Ctrl-C, or, with `once`, one time.

    Args:
        choice: what to show over depth.
        seconds: between two looks at the files.

    Raises:
        UserError: there is no run, ssh fails, or it does not log what was chosen.
        ConnectionError: ssh ended.
    """
    console = Console(highlight=False)
    if not _unicode(console) and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    with contextlib.closing(source(target, follow=not once)) as files:
        run = WatchedRun(files)
        run.update()
        if once:
            check_choice(run, choice)
            console.print(view(run, choice, console.width, console.height, _unicode(console)))
        else:
            with contextlib.suppress(KeyboardInterrupt):
                _live(run, choice, seconds, console)


def check_choice(run: WatchedRun, choice: Choice) -> None:
    """Raises:
    UserError: the run logs other figures, or this one of other parts of the layers.
    """
    if choice.figure and run.layers and choice.figure not in run.figures():
        raise UserError(f"--figure {choice.figure}: this run has {', '.join(run.figures())}")
    name, _ = choice.of(run)
    parts = run.parts(name)
    if choice.part is not None and parts and choice.part not in parts:
        named = ", ".join(part or "''" for part in parts)
        raise UserError(f"--part {choice.part}: {name} has the parts {named} ('' is the whole layer)")


def _live(run: WatchedRun, choice: Choice, seconds: float, console: Console) -> None:
    def screen() -> object:
        return view(run, choice, console.width, console.height - 1, _unicode(console), HINT)

    with keys() as wait, Live(console=console, screen=True, auto_refresh=False) as live:
        checked = False
        while True:
            if run.layers and not checked:
                check_choice(run, choice)
                checked = True
            live.update(screen(), refresh=True)  # type: ignore[arg-type]
            key = wait(seconds)
            if key == "q":
                return
            if key == "f":
                choice.next_figure(run)
            elif key == "p":
                choice.next_part(run)
            else:
                run.update()


def _unicode(console: Console) -> bool:
    return console.encoding.lower().startswith("utf")
