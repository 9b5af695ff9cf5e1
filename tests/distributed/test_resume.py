"""Kill -9 of all ranks at every point that matters; the same command again gives the uninterrupted run."""

from __future__ import annotations

import json
import shutil

import pytest
from harness import CONTEXT, Group, alerts, figures, lines, losses, refused, train, train_main
from targets_faults import WRITE_POINTS, train_and_die, train_with_full_disk, train_with_loss_scaler

PP2 = "parallel.pipeline_stages=2"


@pytest.fixture(scope="module")
def uninterrupted(small_recipe, tmp_path_factory):
    """Losses of two stages that nothing disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(["--recipe", str(small_recipe), f"run.dir={folder}", PP2], 2)
    return folder


def resumed_like(uninterrupted, run) -> int:
    """Assert that `run` equals the uninterrupted run; returns the step it resumed at, 8 if it found itself done."""
    resumes = [event["step"] for event in lines(run / "events.jsonl") if event["event"] == "resume"]
    assert losses(run) == losses(uninterrupted), "exactly equal: fp32, same layout"
    assert figures(run, "grad_norm") == figures(uninterrupted, "grad_norm")
    assert figures(run, "validation_loss") == figures(uninterrupted, "validation_loss")
    return resumes[-1] if resumes else 8


# Every other write point is in tests/unit/checkpoint/test_saving.py, where a save costs less than two sessions.
POINTS = [point for point in WRITE_POINTS if point not in ("room_made", "share_told", "shares_complete")]


@pytest.mark.parametrize("point", ["step", *POINTS])
def test_kill_9_of_all_ranks_then_the_same_command(point, uninterrupted, command, tmp_path):
    pids = CONTEXT.Manager().list()
    # The second save (step 8) is the one that is hit; a plain kill comes in the middle of step 6.
    group = Group(train_and_die, 2, command("run", PP2, "train.max_steps=8"), pids, point, 6 if point == "step" else 8)
    assert group.join() == [-9, -9]
    before = losses(tmp_path / "run") if (tmp_path / "run" / "metrics.jsonl").exists() else []
    train(command("run", PP2), 2)
    step = resumed_like(uninterrupted, tmp_path / "run")
    if point in ("renamed", "latest_moved", "pruned"):
        assert step == 8, "the checkpoint was complete"
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["step"] == 8
    else:
        assert step == 4
        assert len(before) > step, "at least one step was executed again"


def test_killed_before_the_first_save_starts_anew_with_clean_logs(uninterrupted, command, tmp_path):
    pids = CONTEXT.Manager().list()
    assert Group(train_and_die, 2, command("run", PP2), pids, "step", 3).join() == [-9, -9]
    assert len(losses(tmp_path / "run")) == 2
    group = Group(train_main, 2, command("run", PP2))
    assert group.results() == [0, 0]
    assert "ended before its first checkpoint was complete; training starts anew" in group.output()
    assert losses(tmp_path / "run") == losses(uninterrupted)


def test_a_full_disk_is_an_alert_and_then_an_error_that_loses_nothing(uninterrupted, command, tmp_path):
    """Saves cannot be written from step 4 on: training goes on, the end says it in one line, with exit code 1."""
    argv = command("run", PP2, "checkpoint.interval=2", "train.max_steps=6")
    group = Group(train_with_full_disk, 2, argv, 4)
    assert group.results() == [1, 1]
    run = tmp_path / "run"
    assert group.output(0).strip().splitlines()[-1].startswith("error: checkpoint: could not write it (")
    events = [(event["event"], event["step"]) for event in lines(run / "events.jsonl") if "signal" not in event]
    assert not list((run / "checkpoints").glob(".saving_*"))
    assert [event for event in events if event[0] in ("save", "alert")] == [("save", 2), ("alert", 4)]
    train([*argv], 2)
    assert [event["step"] for event in lines(run / "events.jsonl") if event["event"] == "resume"] == [2]
    assert len(losses(run)) == 6


def test_a_loss_scale_goes_on(command, tmp_path):
    """fp16 needs a GPU; its scaler in an fp32 session goes through the same engine, checkpoint and resume."""

    def session(run, *more):
        assert Group(train_with_loss_scaler, 2, command(run, PP2, *more)).results() == [0, 0]
        saved = sorted((tmp_path / run / "checkpoints").glob("step_*"))[-1]
        return json.loads((saved / "training.json").read_text())["loss_scaler"]

    whole = session("whole")
    assert session("run", "train.stop_at_step=5")["cur_scale"] > 16
    assert session("run") == whole
    train(command("plain", PP2, "train.stop_at_step=4"), 2)
    assert session("plain")["cur_iter"] == 4, "a checkpoint without a scale: the scaler begins anew"


def test_bf16_resumes_exactly(command, tmp_path):
    bf16 = ("train.precision=bf16", "monitors.spike_window=4", PP2)
    train(command("whole", *bf16), 2)
    train(command("run", *bf16, "train.stop_at_step=5"), 2)
    train(command("run", *bf16), 2)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    scores = figures(tmp_path / "whole", "spike_score")
    assert [score is None for score in scores] == [True] * 4 + [False] * 4
    assert figures(tmp_path / "run", "spike_score") == scores, "it looks back beyond the resume"


def damage(kind: str, folder) -> None:
    weights = folder / "rank_00000.safetensors"
    if kind == "flipped bit":
        data = bytearray(weights.read_bytes())
        data[len(data) // 2] ^= 1
        weights.write_bytes(data)
    elif kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "missing file":
        weights.unlink()
    elif kind == "bad manifest":
        (folder / "manifest.json").write_text("{")


def copied(uninterrupted, tmp_path):
    """A copy of the run as it is when it was killed before its end was summed up."""
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    (run / "summary.json").unlink()
    return run


@pytest.mark.parametrize("kind", ["flipped bit", "truncated", "missing file", "bad manifest"])
def test_damaged_checkpoint_is_named_and_the_older_one_used(kind, uninterrupted, tmp_path, small_recipe):
    run = copied(uninterrupted, tmp_path)
    damage(kind, run / "checkpoints" / "step_00000008")
    group = Group(train_main, 2, ["--recipe", str(small_recipe), f"run.dir={run}", PP2])
    assert group.results() == [0, 0]
    assert resumed_like(uninterrupted, run) == 4
    (alert,) = alerts(run)
    assert "step_00000008" in alert
    assert group.output(0).count("damaged checkpoint set aside") == 1
    assert "damaged" not in group.output(1)
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["damaged_step_00000008", "latest", "step_00000004", "step_00000008"]


def test_no_whole_checkpoint_is_an_error_not_a_fresh_start(uninterrupted, tmp_path, small_recipe):
    run = copied(uninterrupted, tmp_path)
    for folder in (run / "checkpoints").glob("step_*"):
        damage("flipped bit", folder)
    assert "no checkpoint is whole" in refused(["--recipe", str(small_recipe), f"run.dir={run}", PP2], 2)
    assert losses(run) == losses(uninterrupted), "the logs are untouched"
    assert len(list((run / "checkpoints").glob("step_*"))) == 2, "so are the checkpoints"


def test_init_from_takes_weights_only(uninterrupted, command, tmp_path):
    argv = command("new", "train.max_steps=2", "schedule.warmup_steps=1", "--init-from", str(uninterrupted))
    train([*argv, "train.stop_at_step=1"])
    train(argv)  # the same command goes on
    start = lines(tmp_path / "new" / "events.jsonl")[0]
    assert start["init_from"] == str(uninterrupted)
    assert losses(tmp_path / "new")[0] < losses(uninterrupted)[0] - 0.2, "it starts from trained weights"
    progress = json.loads((tmp_path / "new" / "checkpoints" / "step_00000002" / "training.json").read_text())
    assert progress["optimizer_steps"] == 2


def test_init_from_a_deeper_model_is_refused(uninterrupted, command):
    """Its upper layers would be dropped in silence."""
    error = refused(command("new", "model.encoder_layers=2", "--init-from", str(uninterrupted)))
    assert "checkpoint of another model" in error


def test_pruning_keeps_the_checkpoints_that_are_whole(uninterrupted, tmp_path, small_recipe):
    run = copied(uninterrupted, tmp_path)
    damage("flipped bit", run / "checkpoints" / "step_00000008")
    argv = ["--recipe", str(small_recipe), f"run.dir={run}", PP2, "checkpoint.keep_last=1", "train.stop_at_step=5"]
    train(argv, 2)
    assert [path.name for path in (run / "checkpoints").glob("step_*")] == ["step_00000005"]
    train(argv[:-1], 2)
    assert losses(run) == losses(uninterrupted)


def test_keys_that_decide_the_result_may_not_change_between_sessions(uninterrupted, small_recipe):
    argv = ["--recipe", str(small_recipe), f"run.dir={uninterrupted}", PP2, "optimizer.lr=0.003"]
    assert "optimizer.lr" in refused(argv, 2)
