"""Every way to end a rank, in every phase: the others end soon with the promised code, and the same command goes on.

Each phase has one run. Its sessions end one way after the other, and the next session shows that the one before could
be gone on from; the last one's tensors are those of a run that nothing happened to. Which rank it is changes with way
and phase. "raise" stands for every exception on one rank alone; "hang up" (SIGHUP) for the signals that ask for the
end, whose handler is one.
"""

from __future__ import annotations

import shutil
import signal
import time

import pytest
import torch
from harness import Group, lines, losses
from safetensors.torch import load_file
from targets_endings import POINTS, run_script_of, stop_before_any_beat, train_and_die_in_rollback, train_and_end

from pretrain.errors import EXIT_CRASHED, EXIT_HANG, EXIT_STOPPED_BY_SIGNAL, EXIT_WRONG_INPUT

STEPS = 14
COMMON = (
    "parallel.pipeline_stages=2",
    f"train.max_steps={STEPS}",
    "checkpoint.interval=2",
    "checkpoint.keep_last=99",
    "evaluation.interval=2",
    "monitors.interval=2",
    "watchdog.timeout=3",
)
ROLLBACK = ("policy.on_not_finite=[rollback]", "policy.not_finite_steps=2", "policy.max_rollbacks=9")
PHASES = ("start", "data", "build", "resume", "step", "save", "evaluate", "rollback")
WAYS = ("raise", "kill", "stop", "hang up")
SOON = 60.0
"""Seconds, on a machine that has other things to do: none of the limits that the ranks go by is above 5."""


def arguments(recipe, folder, *overrides):
    return ["--recipe", str(recipe), f"run.dir={folder}", *COMMON, *ROLLBACK, *overrides]


def finish(argv):
    group = Group(run_script_of, 2, argv)
    assert group.join() == [0, 0], group.output()


@pytest.fixture(scope="module")
def begun(small_recipe, tmp_path_factory):
    """A run with a checkpoint at step 2."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    finish(arguments(small_recipe, folder, "train.stop_at_step=2"))
    return folder


@pytest.fixture(scope="module")
def undisturbed(small_recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(arguments(small_recipe, folder))
    return folder


@pytest.fixture
def groups():
    """What still runs (or is stopped) at the end of the test is killed."""
    started = []
    yield started
    for group in started:
        kill(group)


def kill(group):
    for process in group.processes:
        process.kill()
        process.join()


def ended(group, who, way, seconds=SOON):
    """Exit codes once all are gone; a stopped rank once the other has ended, as a cluster would kill it then."""
    deadline = time.monotonic() + seconds
    for rank in (1 - who, who):
        if way == "stop" and rank == who:
            assert group.processes[who].is_alive()
            kill(group)
        group.processes[rank].join(max(0.0, deadline - time.monotonic()))
        assert not group.processes[rank].is_alive(), f"rank {rank} is still there\n{group.output(0)}{group.output(1)}"
    return group.processes[who].exitcode, group.processes[1 - who].exitcode


def promised(way, phase):
    """Exit codes of the rank that ends, and of the other."""
    if way == "raise" and phase == "resume":  # what fails while a state is put back is taken for the state's damage
        return EXIT_WRONG_INPUT, EXIT_WRONG_INPUT
    if way == "raise":
        return EXIT_CRASHED, EXIT_CRASHED
    if way == "hang up" and phase in ("step", "save", "evaluate", "rollback"):
        return EXIT_STOPPED_BY_SIGNAL, EXIT_STOPPED_BY_SIGNAL
    if way == "hang up":  # nothing is there to save yet: it ends at once
        return EXIT_STOPPED_BY_SIGNAL, EXIT_HANG
    return -signal.SIGKILL, EXIT_HANG


def assert_same(folder, other, step=STEPS):
    assert losses(folder) == losses(other)
    files = sorted((folder / "checkpoints" / f"step_{step:08d}").glob("rank_*"))
    assert len(files) == 2
    for path in files:
        ours, theirs = load_file(path), load_file(other / path.relative_to(folder))
        for quantity in ("weight", "exp_avg", "exp_avg_sq"):
            assert torch.equal(ours[quantity], theirs[quantity]), (path.name, quantity)


@pytest.mark.parametrize("phase", PHASES)
def test_every_rank_ends_and_the_same_command_goes_on(phase, small_recipe, begun, request, tmp_path, groups):
    folder = tmp_path / "run"
    shutil.copytree(begun, folder)
    argv = arguments(small_recipe, folder)
    for number, way in enumerate(WAYS):
        if way == "hang up" and phase in ("start", "data"):
            continue  # nobody listens yet: the kernel kills the process, as in "kill"
        who = (PHASES.index(phase) + number) % 2
        groups.append(Group(train_and_end, 2, argv, way, phase, who))
        assert ended(groups[-1], who, way) == promised(way, phase), f"{way}\n{groups[-1].output(0)}"
        output = groups[-1].output(0) + groups[-1].output(1)
        if way in ("kill", "stop"):
            (said,) = [line for line in output.splitlines() if line.startswith("error: ")]
            assert f"rank {who} (process {groups[-1].pids[who]} " in said
        if way == "raise":
            assert output.count("ZeroDivisionError: for once") == 1
    finish(argv)
    told = [event for event in lines(folder / "events.jsonl") if event["event"] == "signal"]
    assert [event["reason"] for event in told] == (["SIGHUP"] if promised("hang up", phase)[1] != EXIT_HANG else [])
    if phase == "rollback":
        other = tmp_path / "never"
        shutil.copytree(begun, other)
        rollbacks = [event for event in lines(folder / "events.jsonl") if event["event"] == "rollback"]
        assert len(rollbacks) == len(WAYS)
        finish(arguments(small_recipe, other, skipping(rollbacks)))
        assert_same(folder, other)
    else:
        assert_same(folder, request.getfixturevalue("undisturbed"))


def skipping(rollbacks):
    """The samples that they left out, as a recipe leaves them out."""
    ranges = [pair for event in rollbacks for pair in event["sample_ranges"]]
    return f"data.skip_ranges={ranges}".replace(" ", "")


def test_a_kill_at_any_point_of_a_rollback(small_recipe, begun, tmp_path):
    """The session after it follows one branch, the one before the rollback or the one behind it, and never a mixture:
    what metrics.jsonl says of the other one is not held against it."""
    folder, other = tmp_path / "run", tmp_path / "never"
    for copy in (folder, other):
        shutil.copytree(begun, copy)
    last = ("checkpoint.interval=4", "train.stop_at_step=8")
    argv = arguments(small_recipe, folder, *last)
    for point in POINTS:
        group = Group(train_and_die_in_rollback, 2, argv, point)
        assert set(group.join(SOON)) == {-signal.SIGKILL}, f"{point}\n{group.output()}"
    rollbacks = [event for event in lines(folder / "events.jsonl") if event["event"] == "rollback"]
    assert [event["to_step"] for event in rollbacks] == [2] * (len(POINTS) - 1), "the first one was not told yet"
    finish(argv)
    finish(arguments(small_recipe, other, *last, skipping(rollbacks)))
    assert_same(folder, other, step=8)


@pytest.mark.parametrize("target", [train_and_end, stop_before_any_beat])
def test_a_rank_that_is_stopped_before_there_is_a_folder_is_named(target, small_recipe, tmp_path, groups):
    """In its imports, with a heartbeat or without one."""
    argv = arguments(small_recipe, tmp_path / "run", "watchdog.start=5")
    groups.append(Group(target, 2, argv, *(("stop", "start") if target is train_and_end else ()), 1))
    assert ended(groups[-1], 1, "stop")[1] == EXIT_HANG
    (said,) = [line for line in groups[-1].output().splitlines() if line.startswith("error: ")]
    who = f"rank 1 (process {groups[-1].pids[1]} " if target is train_and_end else "no sign of life from rank 1 since "
    assert who in said


def test_what_one_rank_alone_refuses_is_said_by_the_first(small_recipe, tmp_path, groups):
    groups.append(Group(train_and_end, 2, arguments(small_recipe, tmp_path / "run"), "refuse", "data", 1))
    assert ended(groups[-1], 1, "refuse") == (EXIT_WRONG_INPUT, EXIT_WRONG_INPUT)
    assert groups[-1].output().strip() == "error: rank 1: data.train: its disk is not mounted here"
    assert groups[-1].output(1) == ""
    assert not (tmp_path / "run" / "events.jsonl").exists()


def test_nohup_means_that_training_goes_on(small_recipe, begun, tmp_path):
    """A hang-up that was ignored when the run began."""
    from targets_endings import train_under_nohup

    folder = tmp_path / "run"
    shutil.copytree(begun, folder)
    group = Group(train_under_nohup, 1, arguments(small_recipe, folder, "parallel.pipeline_stages=1"), 4)
    assert group.join() == [0], group.output()
    assert len(losses(folder)) == STEPS
