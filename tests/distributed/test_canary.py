"""train.canary: a small copy of the model in this layout against one process."""

from __future__ import annotations

import pytest
from harness import Group, lines, train
from targets_canary import train_wrongly

LAYOUTS = {
    "pp2_dp2": (4, ["parallel.pipeline_stages=2", "model.dropout=0.1", "loss.label_smoothing=0.1"]),
    "zero3": (2, ["parallel.zero_stage=3"]),
    "bf16": (2, ["train.precision=bf16"]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_right_layout_trains(name, command, tmp_path):
    processes, overrides = LAYOUTS[name]
    train(command(name, "train.canary=true", "train.stop_at_step=1", *overrides), processes)
    events = {entry["event"]: entry for entry in lines(tmp_path / name / "events.jsonl")}
    assert len(events["canary"]["losses"]) == 2
    assert events["end"]["step"] == 1


@pytest.mark.parametrize(
    ("fault", "layout"),
    [
        ("clipping", "parallel.pipeline_stages=2"),
        ("gradient", "parallel.pipeline_stages=2"),
        ("update", "parallel.pipeline_stages=2"),
        ("clipping", "parallel.zero_stage=3"),
    ],
)
def test_a_wrong_one_is_stopped_before_training(fault, layout, command, tmp_path):
    """Norms of one rank alone; a gradient that one stage's ranks scale; an update that does not reach the weights."""
    argv = command("run", "train.canary=true", layout, "optimizer.clip_norm=0.5")
    group = Group(train_wrongly, 2, argv, fault)
    assert group.results() == [1, 1]
    error = group.output().strip().splitlines()[-1]
    assert error.startswith("error: train.canary: ")
    assert ("step 2 has loss" if fault == "update" else "step 1 has gradient norm") in error
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
