"""Logs that were damaged between two sessions: the run goes on, and says what its logs lack; all readers stand them."""

from __future__ import annotations

import pytest
from harness import Group, lines, train, train_main

from pretrain.analysis.recorded_run import read_run
from pretrain.analysis.watch_follow import LocalRun
from pretrain.analysis.watch_run import WatchedRun
from pretrain.launch.again import why_not

WAS_LEFT_OUT = "1 line could not be read and was left out"


def not_text(path):
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([rows[0], rows[1][:30] + b"\xff" + rows[1][31:], *rows[2:]]))


def without_rows(path):
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([rows[0], *rows[3:]]))


def gone(path):
    path.unlink()


@pytest.fixture
def begun(command, tmp_path):
    argv = command("run", "checkpoint.interval=0")
    train([*argv, "train.stop_at_step=5"])
    return argv, tmp_path / "run"


@pytest.mark.parametrize(
    ("damage", "said", "left"),
    [
        (not_text, f"{WAS_LEFT_OUT}; step 2 is missing", [1, 3, 4, 5, 6, 7, 8]),
        (without_rows, "steps 2 to 3 are missing", [1, 4, 5, 6, 7, 8]),
        (gone, "steps 1 to 5 are missing", [6, 7, 8]),
    ],
)
def test_a_run_goes_on_from_damaged_metrics_and_says_what_they_lack(begun, damage, said, left):
    argv, run = begun
    damage(run / "metrics.jsonl")
    assert read_run(run).summary["step"] == 5
    WatchedRun(LocalRun(run)).update()
    group = Group(train_main, 1, argv)
    assert group.results() == [0]
    told = [line for line in group.output().splitlines() if "metrics.jsonl" in line]
    assert told == [f"{run}: metrics.jsonl, up to step 5, from which this run goes on: {said}"]
    alerts = [event["reason"] for event in lines(run / "events.jsonl") if event["event"] == "alert"]
    assert [f"{run}: {reason}" for reason in alerts if "metrics.jsonl" in reason] == told
    assert [entry["step"] for entry in lines(run / "metrics.jsonl") if "loss" in entry] == left


def test_a_run_goes_on_from_damaged_events(begun):
    argv, run = begun
    events = run / "events.jsonl"
    events.write_bytes(b'\xff\n{"step": 3}\n[1]\n{"event": 7}\n' + events.read_bytes() + b'{"event": "end"}\n{"eve')
    assert "no session has begun" not in why_not(run, None, 3)
    assert read_run(run).events
    WatchedRun(LocalRun(run)).update()
    group = Group(train_main, 1, argv)
    assert group.results() == [0]
    assert "Traceback" not in group.output()
    assert why_not(run, None, 3) == "done"
