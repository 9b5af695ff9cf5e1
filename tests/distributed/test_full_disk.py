"""A disk that is full when a session begins, or gets full meanwhile: one line, nothing half, and the same run after."""

from __future__ import annotations

import subprocess

import pytest
from harness import Group, lines, losses, train_main
from targets_faults import fill_disk, train_on_a_filling_disk

NEVER = 99


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A disk of 6 MB."""
    folder = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def options(small_recipe):
    return ["--recipe", str(small_recipe), "train.max_steps=12", "monitors.tensorboard=true", "monitors.interval=2"]


@pytest.fixture(scope="module")
def undisturbed(options, tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert Group(train_main, 2, [*options, f"run.dir={run}"]).results() == [0, 0]
    return run


@pytest.fixture
def begin(options, disk, request):
    """`begin(target, *args)`: a group of two ranks that train on the disk; and the run's folder."""
    run = disk / request.node.name.replace("[", "_").strip("]")
    filler = disk / "filler"

    def begin(target=train_main, *args):
        return Group(target, 2, [*options, f"run.dir={run}"], *args)

    yield begin, run, filler
    filler.unlink(missing_ok=True)
    subprocess.run(["rm", "-rf", str(run)], check=True)


def same(run, undisturbed):
    """Every line of every step once, with the same figures; TensorBoard shows them too."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert losses(run) == losses(undisturbed)
    assert figures_of(run, "metrics.jsonl", "validation_loss") == figures_of(
        undisturbed, "metrics.jsonl", "validation_loss"
    )
    assert figures_of(run, "layers.jsonl", "signals") == figures_of(undisturbed, "layers.jsonl", "signals")
    shown = EventAccumulator(str(run / "tensorboard")).Reload().Scalars("loss")
    assert [event.step for event in shown] == list(range(1, 13))
    left = [path.name for path in run.iterdir() if path.name.startswith(".")]
    assert left == [".lock"]


def figures_of(run, file, key):
    return [(entry["step"], entry[key]) for entry in lines(run / file) if key in entry]


def said(run, group):
    """Lines on standard error that are no progress, and the alerts in the events that are no verdicts."""
    told = [line for line in group.output().splitlines() if not line.startswith("step ") or "checkpoint" in line]
    alerts = [event for event in lines(run / "events.jsonl") if event["event"] == "alert" and "signal" not in event]
    return told, [event["reason"] for event in alerts]


@pytest.mark.parametrize("left", [0, 8192])
def test_a_session_on_a_full_disk_says_so_and_ends(begin, left, undisturbed):
    start, run, filler = begin
    run.mkdir()
    fill_disk(filler, left)
    group = start()
    assert group.results() == [1, 1]
    error = group.output().strip()
    assert error.startswith("error: run.dir: ")
    assert "No space left on device, make room on that disk" in error
    assert str(run) in error
    assert error.count("\n") == 0
    assert group.output(1) == ""
    filler.unlink()
    assert start().results() == [0, 0]
    same(run, undisturbed)


def test_a_disk_that_is_full_for_a_while_costs_a_save_and_no_line_of_a_log(begin, undisturbed):
    start, run, filler = begin
    group = start(train_on_a_filling_disk, str(filler), 6, 10)
    assert group.results() == [0, 0]
    same(run, undisturbed)
    told, alerts = said(run, group)
    assert len(alerts) == 3, alerts
    waits, again, failed = sorted(alerts, key=lambda reason: reason.startswith("checkpoint: "))
    assert "No space left on device" in waits
    assert f"'{run}/" in waits
    assert waits.endswith("it waits in memory, and training goes on")
    assert failed.startswith("checkpoint: could not")
    assert again == "there is room again: what waited in memory is written"
    assert sum("No space left" in line for line in told) == 2, "logs and save, each once"
    assert group.output(1) == ""


def test_a_disk_that_stays_full_ends_the_run_and_the_same_command_goes_on(begin, undisturbed):
    start, run, filler = begin
    group = start(train_on_a_filling_disk, str(filler), 6, NEVER)
    assert group.results() == [1, 1]
    errors = [line for line in group.output().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "No space left on device" in errors[0]
    assert f"{run}/" in errors[0]
    assert "Traceback" not in group.output() + group.output(1)
    filler.unlink()
    assert start().results() == [0, 0]
    assert [event["step"] for event in lines(run / "events.jsonl") if event["event"] == "resume"] == [4]
    same(run, undisturbed)
