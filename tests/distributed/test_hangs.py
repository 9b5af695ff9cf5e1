"""A rank that stops, stands still or is lost: the others say which, where, and end soon with the promised code."""

from __future__ import annotations

import os
import signal
import time

import pytest
from harness import Group, lines
from targets_hangs import SEEN, train_and, train_slowly

from pretrain.errors import EXIT_HANG

QUICK = ("watchdog.timeout=3", "evaluation.interval=0", "monitors.interval=0", "checkpoint.interval=0")
LAYER, STEP = "decoder.layers.1", 3


@pytest.fixture
def start():
    """`start(target, world_size, *args)`: a group; what still runs (or is stopped) at the end of the test is killed."""
    groups = []

    def start(target, world_size, *args):
        groups.append(Group(target, world_size, *args))
        return groups[-1]

    yield start
    for group in groups:
        for process in group.processes:
            process.kill()
            process.join()


def exit_code(group, rank, seconds=90.0):
    group.processes[rank].join(seconds)
    return group.processes[rank].exitcode


def hang_event(run):
    (event,) = [entry for entry in lines(run / "events.jsonl") if entry["event"] in ("hang", "crash")]
    return event


@pytest.mark.parametrize(("who", "layout"), [(0, ()), (1, ("parallel.pipeline_stages=2",))])
def test_a_stopped_rank_is_named_by_the_other(who, layout, start, command, tmp_path):
    other, run = 1 - who, tmp_path / "run"
    group = start(train_and, 2, command("run", *QUICK, *layout), "stop", who, LAYER, STEP)
    assert exit_code(group, other) == EXIT_HANG
    assert group.processes[who].is_alive()

    event = hang_event(run)
    assert (event["event"], event["ranks"], event["step"], event["exit_code"]) == ("hang", [who], STEP, EXIT_HANG)
    stopped, waiting = event["reached"][who], event["reached"][other]
    assert (stopped["answers"], waiting["answers"]) == (False, True)
    assert (stopped["step"], stopped["layer"], stopped["direction"]) == (STEP, LAYER, "forward")
    assert stopped["pid"] == group.pids[who]
    assert stopped["micro_batch"] == 1
    assert waiting["step"] == STEP
    assert waiting["layer"]

    (line,) = [line for line in group.output(other).splitlines() if line.startswith("error: ")]
    assert f"rank {who} (process {group.pids[who]}" in line
    assert f"stopped answering (step {STEP}, forward of {LAYER}, micro-batch 1)" in line
    stacks = (run / "logs" / f"stacks_rank_{other}.txt").read_text()
    assert stacks.startswith(f"rank {other}, step {STEP}")
    assert "train_step" in stacks
    assert "watchdog.py" in stacks, "all threads"
    assert not (run / "logs" / f"stacks_rank_{who}.txt").exists()


def test_a_rank_that_stands_still_in_a_layer_is_named(start, command, tmp_path):
    group = start(train_and, 2, command("run", *QUICK), "sleep", 1, LAYER, STEP)
    assert [exit_code(group, rank) for rank in (0, 1)] == [EXIT_HANG, EXIT_HANG]
    event = hang_event(tmp_path / "run")
    assert event["ranks"] == [1]
    assert "stood still" in event["reason"]
    assert f"(step {STEP}, forward of {LAYER}, micro-batch 1)" in event["reason"]
    assert event["reached"][0]["waits_in"]
    assert event["reached"][1]["waits_in"] == ""
    assert (group.output(0) + group.output(1)).count("error: ") == 1
    logs = tmp_path / "run" / "logs"
    assert "targets_hangs.py" in (logs / "stacks_rank_1.txt").read_text()
    assert "torch/distributed" in (logs / "stacks_rank_0.txt").read_text()


def test_a_slow_step_that_moves_is_left_alone(start, command, tmp_path):
    """In step 2 each layer takes 0.3 s: some 5 s a step, all at once more than the timeout."""
    group = start(train_slowly, 2, command("run", *QUICK, "train.stop_at_step=2"), 0.3, 2)
    assert group.results() == [0, 0]
    assert [event["event"] for event in lines(tmp_path / "run" / "events.jsonl")][-1] == "end"
    assert not list((tmp_path / "run" / "logs").glob("hang_*"))


def test_a_job_that_was_suspended_goes_on(start, command, tmp_path):
    """As `scontrol suspend` does: the time that all ranks were stopped is no standstill."""
    group = start(train_and, 1, command("run", *QUICK, "watchdog.timeout=2"), "stop and rest", 0, LAYER, STEP)
    heartbeat = tmp_path / "run" / "logs" / "heartbeat_rank_0.json"
    deadline = time.monotonic() + 60
    while not (heartbeat.exists() and f'"{LAYER}"' in heartbeat.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(SEEN + 3)
    os.kill(group.pids[0], signal.SIGCONT)
    assert group.results() == [0]


def test_a_killed_rank_ends_the_others_with_one_line(start, command, tmp_path):
    who, other = 0, 1
    group = start(train_and, 2, command("run", *QUICK), "kill", who, LAYER, STEP)
    assert exit_code(group, who) == -9
    since = time.monotonic()
    assert exit_code(group, other) == EXIT_HANG
    assert time.monotonic() - since < 60, "soon"
    assert hang_event(tmp_path / "run")["ranks"] == [who]
    errors = [line for line in group.output(other).splitlines() if not line.startswith("step ")]
    assert len(errors) == 1, errors
    assert f"rank {who} (process {group.pids[who]}" in errors[0]


def test_without_a_watchdog_a_lost_connection_is_one_line_too(start, command):
    group = start(train_and, 2, command("run", *QUICK, "watchdog.timeout=0"), "kill", 1, LAYER, STEP)
    assert exit_code(group, 0) == EXIT_HANG
    errors = [line for line in group.output(0).splitlines() if not line.startswith("step ")]
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: rank 0 lost the connection to another rank (")


def test_a_crash_is_no_hang(start, command, tmp_path):
    group = start(train_and, 2, command("run", *QUICK), "fail", 1, LAYER, STEP)
    assert exit_code(group, 0) == 1
    event = hang_event(tmp_path / "run")
    assert (event["event"], event["ranks"], event["exit_code"]) == ("crash", [1], 1)
    assert "ZeroDivisionError: for once" in event["reason"]
    assert "error" not in group.output(0)
