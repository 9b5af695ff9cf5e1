"""Progress over sessions, and the reasons to stop with their promised exit codes."""

from __future__ import annotations

import json

from pretrain.training.progress import Progress, Stop


def test_progress_round_trip():
    progress = Progress(step=7, samples=56, tokens=7000, seconds=1.5, loss=2.25, skipped=3)
    again = Progress()
    again.load_state_dict(json.loads(json.dumps(progress.state_dict())))
    assert again == progress
    assert Progress().state_dict() == {
        "step": 0,
        "samples": 0,
        "tokens": 0,
        "seconds": 0.0,
        "loss": None,
        "skipped": 0,
        "nonfinite": 0,
    }


def test_exit_codes():
    assert {stop.name: stop.exit_code for stop in Stop} == {
        "NO": 0,
        "STOP_AT_STEP": 0,
        "MAX_STEPS": 0,
        "SIGINT": 75,
        "SIGTERM": 75,
        "SIGHUP": 75,
        "ORPHANED": 76,
        "UNSTABLE": 78,
        "FOLDER_LOST": 2,
    }


def test_reasons():
    assert [stop.reason for stop in Stop] == [
        "no",
        "stop_at_step",
        "max_steps",
        "launcher died",
        "SIGHUP",
        "SIGINT",
        "SIGTERM",
        "unstable",
        "run.dir is another folder",
    ]


def test_ranks_agree_on_what_is_most_urgent():
    signals = [Stop.SIGHUP, Stop.SIGINT, Stop.SIGTERM]
    order = [Stop.NO, Stop.STOP_AT_STEP, Stop.MAX_STEPS, Stop.ORPHANED, *signals, Stop.UNSTABLE, Stop.FOLDER_LOST]
    assert sorted(Stop) == order
    assert max(Stop.MAX_STEPS, Stop.SIGTERM) is Stop.SIGTERM
