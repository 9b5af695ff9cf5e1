"""A session that was asked to stop says so, and the next one on its folder waits for its save."""

from __future__ import annotations

import os
import signal
import time

import pytest
from harness import Group, lines
from targets_faults import train_and_linger, train_without_grace


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def holds(path, text) -> bool:
    return path.exists() and text in path.read_text()


@pytest.fixture
def start():
    """`start(target, *args)`: a group of one process; what still runs at the end of the test is killed."""
    groups = []

    def start(target, *args):
        groups.append(Group(target, 1, *args))
        return groups[-1]

    yield start
    for group in groups:
        for process in group.processes:
            process.kill()


def test_the_next_session_waits_for_the_save_of_one_that_is_ending(start, command, tmp_path):
    run, release = tmp_path / "run", tmp_path / "release"
    argv = command("run", "train.max_steps=4000", "checkpoint.interval=0", "evaluation.interval=0")
    first = start(train_and_linger, argv, str(release))
    wait_for(lambda: holds(run / "metrics.jsonl", '"step": 2,'))
    at_work = start(train_without_grace, argv)
    assert at_work.results() == [2]
    assert f"is in use by process {first.pids[0]}" in at_work.output()

    os.kill(first.pids[0], signal.SIGTERM)
    wait_for(lambda: holds(run / ".lock", "which is ending"))
    second = start(train_without_grace, [*argv, "train.stop_at_step=1"])
    wait_for(lambda: holds(second.folder / "rank_0.txt", f"waiting for process {first.pids[0]}"))
    release.touch()
    assert first.results() == [75]
    assert second.results() == [0]
    saved = [event["step"] for event in lines(run / "events.jsonl") if event["event"] == "save"]
    assert saved[0] >= 2
    assert "done; set a later last step" in second.output(), "it found the checkpoint that came while it waited"
