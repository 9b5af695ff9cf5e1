"""A watched run as one screen of text: figures, the worst verdict, the loss, a profile over depth, events."""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from pretrain.analysis.figures import figure
from pretrain.analysis.recorded_session import how_it_ended
from pretrain.analysis.report_data import ROUTINE_EVENTS, model_line
from pretrain.analysis.watch_plot import Line, plot, short
from pretrain.analysis.watch_run import WatchedRun

STYLES = ("cyan", "yellow", "green", "magenta")
LEVEL_STYLES = {"alarm": "bold red", "watch": "bold yellow", "ok": "green"}
EVENT_STYLES = {"alert": "yellow", "skip": "magenta", "rollback": "magenta", "signal": "red"}
SHOWN = (
    ("loss", "loss"),
    ("val", "validation_loss"),
    ("source use", "source_use"),
    ("lr", "lr"),
    ("|g|", "grad_norm"),
)
"""Label and key of the figures in the head."""
LEAST_EVENTS, MOST_EVENTS = 3, 12
QUIET_STEPS = 10
"""Steps' worth of silence after which it is said how long a run has been silent."""
QUIET_SECONDS = 60.0
RUNNING = "running"


@dataclass
class Choice:
    """What to show over depth; empty: what the worst verdict is about, or the first there is."""

    figure: str = ""
    part: str | None = None

    def of(self, run: WatchedRun) -> tuple[str, str]:
        """(figure, part) as far as the run has them."""
        names = run.figures()
        worst = run.verdicts[0] if run.verdicts and run.verdicts[0]["level"] != "ok" else {}
        name = self.figure or str(worst.get("figure", ""))
        name = name if name in names else (names[0] if names else "")
        parts = run.parts(name)
        group = worst.get("group") if worst.get("figure") == name else None
        part = self.part if self.part is not None else (group or "").partition(".")[2]
        return name, part if part in parts else (parts[0] if parts else "")

    def next_figure(self, run: WatchedRun) -> None:
        self.figure = after(self.of(run)[0], run.figures())

    def next_part(self, run: WatchedRun) -> None:
        name, part = self.of(run)
        self.part = after(part, run.parts(name))


def after(one: str, names: Sequence[str]) -> str:
    """The name behind `one`, round and round."""
    return names[(names.index(one) + 1) % len(names)] if one in names else ""


def view(run: WatchedRun, choice: Choice, width: int, height: int, unicode: bool, hint: str = "") -> RenderableType:
    """The whole screen; `height` lines where it has at least 16."""
    head = [*_head(run, width), *_verdict(run, width)]
    tail_rows = min(MOST_EVENTS, max(LEAST_EVENTS, (height - 14) // 3))
    tail = _events(run, tail_rows, width)
    rows = max(6, height - len(head) - len(tail) - bool(hint) - 2)
    charts = _charts(run, choice, width, rows, unicode)
    parts: list[RenderableType] = [*head, Text(), charts, Text(), *tail]
    return Group(*parts, *([Text(hint[:width], style="dim")] if hint else []))


def _head(run: WatchedRun, width: int) -> list[Text]:
    """The run in a line, its figures in another."""
    name = str(run.config.get("name") or run.source.name)
    status, style = _status(run)
    if status == RUNNING and (left := _left(run)):
        status += f", {left} left"
    line = Text.assemble((name, "bold"), "  ", (model_line(run.config), "dim"))
    line.truncate(max(10, width - len(status) - 2), overflow="ellipsis")
    line.append(" " * max(1, width - line.cell_len - len(status)))
    line.append(status, style)
    return [line, _figures(run, width)]


def _goal(run: WatchedRun) -> int | None:
    train = run.config.get("train")
    goal = train.get("max_steps") if isinstance(train, dict) else None
    return goal if isinstance(goal, int) else None


def _left(run: WatchedRun) -> str:
    """The time to the last step, as it goes now."""
    goal, seconds = _goal(run), run.recent("step_seconds")
    if goal is None or seconds is None or goal <= run.last_step:
        return ""
    return tqdm.format_interval(seconds * (goal - run.last_step))


def _status(run: WatchedRun) -> tuple[str, str]:
    if reason := how_it_ended(run.events):
        return reason[:40], "bold"
    silent = time.monotonic() - run.heard if run.heard else 0.0
    if silent > max(QUIET_SECONDS, QUIET_STEPS * (run.recent("step_seconds") or 0.0)):
        return f"silent for {tqdm.format_interval(silent)}", "bold red"
    return RUNNING if run.steps else "no step yet", "green"


def _figures(run: WatchedRun, width: int) -> Text:
    goal = _goal(run)
    parts = [Text(f"step {run.last_step:,}" + ("" if goal is None else f"/{goal:,}"))]
    for label, key in SHOWN:
        value = run.newest(key)
        if value is not None:
            parts.append(Text(f"{label} {short(value)}", style="" if math.isfinite(value) else "bold red"))
    rate = run.recent("tokens_per_second")
    if rate is not None:
        parts.append(Text(f"{rate:,.0f} tokens/s"))
    line = Text("  ").join(parts)
    line.truncate(width, overflow="ellipsis")
    return line


def _verdict(run: WatchedRun, width: int) -> list[Text]:
    """The worst verdict in at most two lines."""
    if not run.verdicts:
        return [Text("no verdict yet", style="dim")]
    level = run.verdicts[0]["level"]
    more = sum(verdict["level"] == level for verdict in run.verdicts[1:])
    said = f"all {len(run.verdicts)} signals" if level == "ok" else run.verdicts[0]["sentence"]
    count = f" (and {more} more)" if more and level != "ok" else ""
    lines = [Text(line) for line in textwrap.wrap(f"{level}{count}  {said}", width, max_lines=2, placeholder=" …")]
    lines[0].stylize(LEVEL_STYLES[level], 0, len(level))
    return lines


def _charts(run: WatchedRun, choice: Choice, width: int, rows: int, unicode: bool) -> Table:
    own = (width - 2) // 2
    left = _loss(run, own, rows, unicode)
    right = _profile(run, choice, width - 2 - own, rows, unicode)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=own, no_wrap=True)
    table.add_column(width=width - 2 - own, no_wrap=True)
    for one, other in zip(left, right, strict=True):
        table.add_row(one, other)
    return table


def _loss(run: WatchedRun, width: int, rows: int, unicode: bool) -> list[Text]:
    curves = (("training", "loss"), ("validation", "validation_loss"))
    lines = {name: Line(*run.curve(key), style) for (name, key), style in zip(curves, STYLES, strict=False)}
    return _chart(Text("Loss", style="bold"), lines, width, rows, unicode)


def _profile(run: WatchedRun, choice: Choice, width: int, rows: int, unicode: bool) -> list[Text]:
    name, part = choice.of(run)
    title = Text(figure(name).title if name else "Over layers", style="bold")
    if name:
        title.append(f" over layers, step {run.sampled:,}", style="dim")
    lines = {
        group.replace(".", " ").replace("_", " "): Line(np.arange(len(row), dtype=np.float64), row, style)
        for (group, row), style in zip(run.profile(name, part).items(), STYLES, strict=False)
    }
    return _chart(title, lines, width, rows, unicode)


def _chart(title: Text, lines: dict[str, Line], width: int, rows: int, unicode: bool) -> list[Text]:
    legend = Text("  ").join(Text(name, style=line.style) for name, line in lines.items() if line.xs.size)
    for text in (title, legend):
        text.truncate(width, overflow="ellipsis")
    return [title, legend, *plot(list(lines.values()), width, rows - 2, unicode)]


def _events(run: WatchedRun, count: int, width: int) -> list[Text]:
    lines = [_event(event, width) for event in telling(run.events)[-count:]]
    return lines + [Text()] * (count - len(lines))


def telling(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events without the routine ones, of which there are many, but for the newest of each kind."""
    newest = {kind: event for event in events if (kind := event.get("event")) in ROUTINE_EVENTS}
    return [event for event in events if event.get("event") not in newest or event is newest[event.get("event")]]


def _event(event: dict[str, Any], width: int) -> Text:
    kind = str(event.get("event", "?"))
    details = {key: value for key, value in event.items() if key not in ("time", "step", "event") and value is not None}
    told = (f"{key} {short(value) if isinstance(value, float) else value}" for key, value in details.items())
    said = str(event.get("reason") or ", ".join(told))
    line = Text.assemble(
        (str(event.get("time", ""))[11:19].ljust(8), "dim"),
        f"  {event.get('step', ''):>7}  ",
        (f"{kind:<9}", EVENT_STYLES.get(kind, "")),
        f" {said}",
    )
    line.truncate(width, overflow="ellipsis")
    return line
