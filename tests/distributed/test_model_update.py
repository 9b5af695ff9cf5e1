"""The model update and its bound in every layout against the whole model in fp64, and over a resume."""

from __future__ import annotations

import pytest
import targets_engine as targets
import targets_model_update as direct
import torch
from harness import alerts, lines, run_group, train

torch.set_num_threads(1)
LAYOUTS = targets.LAYOUTS | {
    "pp2_pre_ln": (2, {"parallel.pipeline_stages": 2, "model.block": {"kind": "pre_ln"}}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_the_direct_computation(layout, tmp_path):
    """1e-5: F in fp32 has an error of about 1e-6 of its size, and moves by a tenth of it or more."""
    processes, changes = LAYOUTS[layout]
    ranks = run_group(targets.signals, processes, changes, str(tmp_path), direct.chosen, (1, 2))
    config, probe = targets.experiment(changes), targets.probe_batch()
    start, before, after = (targets.assembled([rank[when] for rank in ranks]) for when in ("start", "before", "after"))
    for rank in ranks:
        first, second = rank["profiles"][1], rank["profiles"][2]
        assert first["model_update"] == first["model_update_step"]
        assert first["model_update"]["model"] == pytest.approx([direct.update(before, start, config, probe)], rel=1e-5)
        assert second["model_update"]["model"] == pytest.approx([direct.update(after, start, config, probe)], rel=1e-5)
        assert second["model_update_step"]["model"] == pytest.approx(
            [direct.update(after, before, config, probe)], rel=1e-5
        )
        if config.model.block.kind == "deepnorm":
            expected = [direct.bound(weights, start, config.model) for weights in (before, after)]
            found = [rank["profiles"][step]["model_update_bound"]["model"][0] for step in (1, 2)]
            assert found == pytest.approx(expected, rel=1e-5)
        else:
            assert "model_update_bound" not in second
        assert rank["hooks"] == 0


FIGURES = ("model_update", "model_update_step", "model_update_bound")
KEYS = ("monitors.interval=3", "train.max_steps=7", "evaluation.interval=0", "checkpoint.interval=0")
"""Samples at 1, 3 and 6, a stop at 4 or 2 between them: the previous sample is not of the step that is saved."""


def samples(run):
    """{step: figures} of a run."""
    return {
        entry["step"]: {figure: entry["signals"][figure]["model"][0] for figure in FIGURES}
        for entry in lines(run / "layers.jsonl")
    }


@pytest.fixture(scope="module")
def whole(small_recipe, tmp_path_factory):
    """The run that is never interrupted."""
    run = tmp_path_factory.mktemp("whole")
    train(["--recipe", str(small_recipe), f"run.dir={run}", *KEYS])
    return run


def test_a_resume_in_another_layout_shows_the_same(command, whole, tmp_path):
    """1e-4: the layouts' weights differ by rounding after the third sampled step."""
    train(command("cut", *KEYS, "train.stop_at_step=4"))
    train(command("cut", *KEYS, "parallel.pipeline_stages=2"), world_size=2)
    found, expected = samples(tmp_path / "cut"), samples(whole)
    assert list(found) == [1, 3, 6]
    for step in found:
        assert found[step] == pytest.approx(expected[step], rel=1e-4), step
    assert found[6]["model_update"] > 1.01 * found[6]["model_update_step"]
    assert not alerts(tmp_path / "cut")


def test_what_is_not_known_is_null_with_an_alert(command, tmp_path):
    """Monitors that were off at the start have seen neither F nor the weights then; the step is known again at 6."""
    train(command("late", *KEYS, "monitors.interval=0", "train.stop_at_step=2"))
    train(command("late", *KEYS))
    found = samples(tmp_path / "late")
    assert found[3] == dict.fromkeys(FIGURES)
    assert found[6]["model_update_step"] > 0
    assert [found[6]["model_update"], found[6]["model_update_bound"]] == [None, None]
    assert [reason.split(" is left out")[0] for reason in alerts(tmp_path / "late")] == [
        "model_update",
        "model_update_bound",
    ]


def test_another_probe_is_not_compared_with_the_first(command, tmp_path):
    train(command("other", *KEYS, "train.stop_at_step=2"))
    train(command("other", *KEYS, "monitors.probe_samples=2"))
    found = samples(tmp_path / "other")
    assert found[3]["model_update"] is None
    assert found[3]["model_update_bound"] > 0
    assert [reason for reason in alerts(tmp_path / "other") if "other samples" in reason]


def test_given_weights_are_the_start(command, whole, tmp_path):
    """With --init-from the update is measured from the weights that were given; from the seed it would be larger. A
    resume cannot make them again, so that the bound is missing then."""
    given = ["--init-from", str(whole)]
    train(command("tuned", *KEYS, "train.stop_at_step=2") + given)
    train(command("tuned", *KEYS) + given)
    found = samples(tmp_path / "tuned")
    assert 0 < found[1]["model_update"] < 0.5 * samples(whole)[6]["model_update"]
    assert found[1]["model_update_bound"] > 0
    assert found[3]["model_update"] > 0
    assert found[3]["model_update_bound"] is None
    assert len(alerts(tmp_path / "tuned")) == 1
