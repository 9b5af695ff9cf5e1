"""The first loss after a resume is compared with what belongs there."""

from __future__ import annotations

import pytest
from harness import Group, lines, losses, train
from targets_canary import resume_with_other_data, resume_with_stale_weights


@pytest.fixture
def ended(command, tmp_path):
    """Arguments of a run of 8 steps that a session ended at step 4; two stages, the last save not at an interval."""
    argv = command("run", "parallel.pipeline_stages=2", "checkpoint.interval=3")
    train([*argv, "train.stop_at_step=4"], 2)
    return argv


def refused(target, argv):
    group = Group(target, 2, argv)
    assert group.results() == [1, 1]
    return group.output().strip().splitlines()[-1]


def test_it_goes_on_where_all_is_well(ended, command, tmp_path):
    """In another layout too; what the whole run gives in one session."""
    train([argument for argument in ended if not argument.startswith("parallel.")])
    train(command("whole", "checkpoint.interval=3"))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


def test_stale_weights_are_seen(ended, tmp_path):
    """Restored for the optimizer, not for the forward pass; again at the second try, when the metrics are cut."""
    run = tmp_path / "run"
    before = losses(run)
    for _ in range(2):
        error = refused(resume_with_stale_weights, ended)
        assert error.startswith("error: step 5, the first after the resume: evaluation loss ")
        assert "verify_resume=false" in error
        assert losses(run) == before, "nothing of the wrong session stays"
    expected = [entry["expected_loss"] for entry in lines(run / "events.jsonl") if entry["event"] == "alert"]
    assert len(set(expected)) == 1
    assert Group(resume_with_stale_weights, 2, [*ended, "checkpoint.verify_resume=false"]).results() == [0, 0]


def test_other_data_are_seen(ended):
    assert "instead of" in refused(resume_with_other_data, ended)


def test_a_killed_session_left_the_loss_in_its_metrics(command, tmp_path):
    """With dropout nothing is recorded at the end: the metrics of steps beyond the checkpoint tell."""
    argv = command("run", "model.dropout=0.1", "checkpoint.interval=3", "checkpoint.keep_last=9")
    train(argv)
    run = tmp_path / "run"
    for step in (6, 8):
        (run / "checkpoints" / f"step_{step:08d}").rename(run / f"away_{step}")
    (run / "summary.json").unlink()
    entries = (run / "metrics.jsonl").read_text()
    group = Group(resume_with_stale_weights, 1, argv)
    assert group.results() == [1]
    (run / "metrics.jsonl").write_text(entries)
    train(argv)
