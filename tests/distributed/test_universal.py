"""Universal checkpoints: real DeepSpeed engines load ours, and ours are made of theirs."""

from __future__ import annotations

import shutil

import pytest
import torch
from harness import lines, run_group, train
from targets_universal import load_and_train, save_and_go_on, train_and_save, train_from_universal

from pretrain.checkpoint.universal import to_deepspeed
from pretrain.checkpoint.universal_import import from_deepspeed
from pretrain.checkpoint.universal_names import STAGES as STAGE_NAMES
from pretrain.config.load import load_experiment
from pretrain.state.reader import Checkpoint

STAGES = (1, 3)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """(checkpoint of step 2 by two ZeRO-1 ranks, losses of the uninterrupted four steps)."""
    folder = tmp_path_factory.mktemp("ours")
    losses = run_group(save_and_go_on, 2, {}, folder / "checkpoints", folder, {})
    return folder / "checkpoints" / "step_00000002", losses[0]


@pytest.fixture(scope="module")
def loaded(ours, tmp_path_factory):
    """(whole or weights alone, stage) -> what engines of DeepSpeed did with ours."""
    checkpoint, _ = ours
    folder = tmp_path_factory.mktemp("loaded")
    assert to_deepspeed(checkpoint, folder / "whole", prefix="body.").moments
    assert not from_deepspeed(folder / "whole", folder / "weights", weights_only=True).moments
    assert not to_deepspeed(folder / "weights", folder / "alone", prefix="body.").moments
    found = run_group(load_and_train, 2, [folder / "whole"], STAGES, "body", folder)[0]
    found |= {(1, 1): run_group(load_and_train, 2, [folder / "alone"], (1,), "body", folder)[0][0, 1]}
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_a_deepspeed_engine_goes_on_from_ours(stage, ours, loaded):
    """1e-6 relative is a few units in the last place of fp32; ZeRO stages sum in other orders."""
    assert loaded[0, stage]["losses"] == pytest.approx(ours[1][2:], rel=1e-6)
    assert loaded[0, stage]["counters"] == (4, 0, 32)


def test_weights_alone_start_a_fresh_optimizer(ours, loaded):
    """The loss of the loaded weights is that of the run; the one after the next step is not, as moments start at 0."""
    first, second = loaded[1, 1]["losses"]
    assert first == pytest.approx(ours[1][2], rel=1e-6)
    assert abs(second / ours[1][3] - 1) > 1e-4


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """(folder of universal checkpoints that DeepSpeed made, stage -> name -> weight and moments)."""
    folder = tmp_path_factory.mktemp("theirs")
    return folder, run_group(train_and_save, 2, STAGES, folder, "layers", folder)[0]


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_deepspeed_engine_saved_is_ours_bit_for_bit(stage, theirs, tmp_path):
    folder, states = theirs
    report = from_deepspeed(folder / f"stage_{stage}_u", tmp_path / "step_00000003")
    assert (report.step, report.moments, report.resumes) == (3, True, False)
    checkpoint = Checkpoint(tmp_path / "step_00000003")
    assert {f"layers.{name}" for name in checkpoint.index.names()} == set(states[stage])
    for name in checkpoint.index.names():
        for quantity, value in zip(("weight", "exp_avg", "exp_avg_sq"), states[stage][f"layers.{name}"], strict=True):
            assert value.any(), "a test of zeros would tell nothing"
            assert torch.equal(checkpoint.read(name, quantity), torch.from_numpy(value)), (name, quantity)
    assert checkpoint.training()["optimizer_steps"] == 3


def test_a_pipeline_loads_ours_and_a_run_goes_on_from_universal(command, tmp_path):
    """Two stages stop at step 2 of 4. DeepSpeed's pipeline engine, and our resume after the way back, go on alike."""
    stages = "parallel.pipeline_stages=2"
    steps = ("train.max_steps=4", "evaluation.interval=0", "checkpoint.interval=0", "monitors.interval=0")
    train(command("run", stages, *steps, "train.stop_at_step=2"), 2)
    shutil.copytree(tmp_path / "run", tmp_path / "theirs")
    to_deepspeed(tmp_path / "run", tmp_path / "universal", naming=STAGE_NAMES)
    recipe = load_experiment(command("x")[1], steps)
    from_deepspeed(tmp_path / "universal", tmp_path / "back" / "checkpoints" / "step_00000002", recipe)
    train(command("run", stages, *steps), 2)
    arguments = command("theirs", stages, *steps)
    assert run_group(train_from_universal, 2, arguments, tmp_path / "universal") == [0, 0]
    train(command("back", stages, *steps), 2)
    expected = _losses(tmp_path / "run")
    assert list(expected) == [1, 2, 3, 4]
    assert _losses(tmp_path / "theirs") == expected, "exactly: fp32, the same layout"
    assert _losses(tmp_path / "back") == {step: expected[step] for step in (3, 4)}


def _losses(run):
    return {entry["step"]: entry["loss"] for entry in lines(run / "metrics.jsonl") if "loss" in entry}
