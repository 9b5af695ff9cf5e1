"""The folder of a live run is moved aside and another run is begun under its name: neither writes into the other's."""

from __future__ import annotations

import os
import shutil
import signal
import time

from harness import Group, lines, losses, train, train_main

from pretrain.state.reader import list_checkpoints


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def assert_untouched(run):
    """Of a run of one process nothing is there but its own."""
    events = lines(run / "events.jsonl")
    assert [event["event"] for event in events if event["event"] != "save"] == ["start", "end"]
    assert events[-1]["exit_code"] == 0
    assert {path.name for path in (run / "logs").iterdir()} <= {"heartbeat_rank_0.json", "rank_0.log"}


def test_each_run_writes_to_its_own_folder(command, tmp_path):
    run, aside = tmp_path / "run", tmp_path / "aside"
    argv = command("run", "train.max_steps=100000", "evaluation.interval=0", "checkpoint.interval=50")
    first = Group(train_main, 2, argv)
    try:
        wait_for(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n") > 2)
        run.rename(aside)
        second = Group(train_main, 1, [*argv, "train.stop_at_step=3"])
        assert first.results() == [2, 2]
    finally:
        for process in first.processes:
            process.kill()
    assert second.results() == [0], second.output()

    told = [line for line in first.output().splitlines() if line.startswith("run.dir = ")]
    assert len(told) == 1
    assert f"run.dir = {run} was moved to {aside}" in told[0]
    assert told[0].endswith(f"go on with run.dir={aside}")
    assert "Traceback" not in first.output() + first.output(1)

    assert len(losses(run)) == 3
    assert_untouched(run)
    assert [folder.name for folder in list_checkpoints(run / "checkpoints")] == ["step_00000003"]
    reached = len(losses(aside))
    assert list_checkpoints(aside / "checkpoints")[0].name == f"step_{reached:08d}", "its last state is kept"
    end = lines(aside / "events.jsonl")[-1]
    assert (end["event"], end["reason"], end["exit_code"]) == ("end", "run.dir is another folder", 2)

    train([*argv, f"run.dir={aside}", f"train.stop_at_step={reached + 1}"])
    assert len(losses(aside)) == reached + 1


def test_a_folder_that_was_removed_ends_the_run_with_a_line(command, tmp_path):
    run = tmp_path / "run"
    group = Group(train_main, 2, command("run", "train.max_steps=100000", "evaluation.interval=0"))
    wait_for(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n") > 2)
    grave = tmp_path / "other" / "grave"
    grave.parent.mkdir()
    run.rename(grave)
    for path in sorted(grave.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    grave.rmdir()
    assert group.results() == [2, 2]
    errors = [line for line in group.output().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert f"run.dir = {run} was removed" in errors[0]
    assert not list(tmp_path.glob("run/checkpoints/step_*"))


def test_a_session_that_lost_its_folder_says_nothing_in_the_other_s(command, tmp_path):
    """It is removed and begun anew while the first one is in a long step."""
    run = tmp_path / "run"
    argv = command("run", "train.max_steps=100000", "evaluation.interval=0", "checkpoint.interval=0")
    first = Group(train_main, 1, argv)
    try:
        wait_for(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n") > 2)
        os.kill(first.pids[0], signal.SIGSTOP)
        shutil.rmtree(run)
        train([*argv, "train.stop_at_step=3"])
        os.kill(first.pids[0], signal.SIGCONT)
        assert first.results() == [2], first.output()
    finally:
        first.processes[0].kill()
    assert "was removed" in first.output()
    assert_untouched(run)
