"""The worst verdict below the progress bar, and on plain lines without filling a log."""

from __future__ import annotations

import io
import os
from types import SimpleNamespace
from typing import Any

import pytest

from pretrain.monitors import progress_bar
from pretrain.monitors.progress_bar import ProgressBar
from pretrain.monitors.verdicts import Level, Verdict

TRAINER: Any = SimpleNamespace(progress=SimpleNamespace(step=0), last_step=10, tokens_per_step=100)
EVALUATION: Any = SimpleNamespace(validation_loss=None, source_use=None)


def verdict(level: Level, value: float, signal: str = "adam_rms") -> Verdict:
    return Verdict(
        signal, signal, "encoder", 3, level, value, 2.3, f"{signal} is {value:g} in encoder, layer 3: " + "x" * 99
    )


def step(bar: ProgressBar, number: int) -> None:
    report: Any = SimpleNamespace(step=number, step_seconds=0.5, result=SimpleNamespace(loss=2.0))
    bar.on_step_end(TRAINER, report)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    shown = Terminal()
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setattr(progress_bar.shutil, "get_terminal_size", lambda: os.terminal_size((60, 24)))
    return shown


def test_second_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    judge = SimpleNamespace(worst=None)
    bar = ProgressBar(EVALUATION, judge)
    bar.on_start(TRAINER)
    step(bar, 1)
    assert "adam_rms" not in terminal.getvalue()
    judge.worst = verdict(Level.WATCH, 3.0)
    step(bar, 2)
    lines = [line for line in terminal.getvalue().replace("\r", "\n").split("\n") if "adam_rms" in line]
    assert lines[-1].startswith("watch: adam_rms is 3 in encoder, layer 3: xxx")
    assert lines[-1].split("\x1b")[0].rstrip().endswith("…")
    assert len(lines[-1].split("\x1b")[0].rstrip()) == 59  # a longer line would break the bar above
    before = terminal.getvalue().count("adam_rms")
    step(bar, 3)
    assert terminal.getvalue().count("adam_rms") == before
    bar.on_close(TRAINER)


def test_the_bar_goes_back_with_a_rollback(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_terminal(monkeypatch)
    bar = ProgressBar(EVALUATION)
    bar.on_start(TRAINER)
    for number in (1, 2, 3, 2):
        step(bar, number)
    assert bar.bar is not None
    assert bar.bar.n == 2
    bar.on_close(TRAINER)


def test_plain_lines_tell_a_verdict_when_it_is_another(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_bar, "SECONDS_BETWEEN_LINES", 0.0)
    judge = SimpleNamespace(worst=None)
    bar = ProgressBar(EVALUATION, judge)
    bar.on_start(TRAINER)
    for number, worst in enumerate(
        [
            None,
            verdict(Level.WATCH, 3.0),
            verdict(Level.WATCH, 3.5),  # the same with another value: not said again
            verdict(Level.ALARM, 11.0),
            verdict(Level.ALARM, 12.0, "token_cosine"),
            None,
            None,
        ],
        start=1,
    ):
        judge.worst = worst
        step(bar, number)
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("step ")]
    assert [line.split(" in ")[0] for line in said] == [
        "watch: adam_rms is 3",
        "alarm: adam_rms is 11",
        "alarm: token_cosine is 12",
        "all verdicts are ok again",
    ]


def test_no_line_in_between(capsys: pytest.CaptureFixture[str]) -> None:
    judge = SimpleNamespace(worst=verdict(Level.WATCH, 3.0))
    bar = ProgressBar(EVALUATION, judge)
    bar.on_start(TRAINER)
    for number in range(1, 10):
        judge.worst = verdict(Level.WATCH, 3.0, f"signal_{number}")
        step(bar, number)
    assert len(capsys.readouterr().err.splitlines()) == 2  # step 1 and its verdict; the next line is due in 10 s
