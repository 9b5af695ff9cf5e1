"""Two stages compute what one process does, for every family and block."""

from __future__ import annotations

import pytest
import targets_equations as equations
import torch
from harness import Group
from targets_families import LOSS, LOSS_MODEL, STEPS, cases, experiment, global_batch, run_cases, spec_of

from pretrain.models.layer_list import LayerList


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """Results of one process and of two stages, run at the same time."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    groups = [Group(run_cases, stages, stages, str(folder)) for stages, folder in zip((1, 2), folders, strict=True)]
    return [group.results(timeout=400)[0] for group in groups]


@pytest.mark.parametrize("name", [name for name, _, _ in cases()])
def test_two_stages_train_as_one_process_does(layouts, name):
    """fp32: sums are taken in another order, and ten steps carry that on."""
    one, two = (results[name] for results, _ in layouts)
    assert len(one) == len(two) == STEPS
    for step, (ours, theirs) in enumerate(zip(two, one, strict=True), start=1):
        assert ours == pytest.approx(theirs, rel=1e-5), f"step {step}"
    assert len({loss for loss, _ in one}) == STEPS, "the loss stands still"


@pytest.mark.parametrize("layout", [0, 1], ids=["one process", "two stages"])
def test_the_loss_options_reach_training_and_training_alone(layouts, layout):
    """Both against the written-out loss in fp64 on the initial weights; the engine computes in fp32."""
    config, batch = experiment(LOSS_MODEL, 1, LOSS), global_batch(0)
    spec = spec_of(config)
    with torch.no_grad():
        (logits,) = LayerList(spec, seed=config.train.seed).double()(spec.state(batch))
    total, count = equations.summed_loss(logits, batch["labels"], **LOSS)
    plain, _ = equations.summed_loss(logits, batch["labels"])
    before, trained, after, counted = layouts[layout][1]
    assert counted == count
    assert trained == pytest.approx(float(total / count), rel=1e-5)
    assert before == pytest.approx(float(plain / count), rel=1e-5)
    assert after == before
