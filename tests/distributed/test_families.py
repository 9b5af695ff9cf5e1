"""Two stages compute what one process does, for every family and block."""

from __future__ import annotations

import pytest
import targets_equations as equations
import torch
from harness import Group
from targets_families import (
    LOSS,
    LOSS_MODEL,
    RECOMPUTED_STEPS,
    STEPS,
    cases,
    experiment,
    global_batch,
    recomputed_cases,
    run_cases,
    run_recomputed,
    spec_of,
)

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


@pytest.fixture(scope="module")
def recomputed(tmp_path_factory):
    """Results under activation checkpointing of two stages, and of ZeRO-3, run at the same time."""
    layouts = {"two": (2, 1), "zero3": (1, 3)}
    groups = {
        name: Group(run_recomputed, stages, stages, str(tmp_path_factory.mktemp(name)), zero)
        for name, (stages, zero) in layouts.items()
    }
    return {name: group.results(timeout=400)[0] for name, group in groups.items()}


@pytest.mark.parametrize("name", [name for name, _, _ in recomputed_cases()])
def test_recomputed_activations_train_the_same(layouts, recomputed, name):
    """Bit by bit in the same layout; ZeRO-3 sums the norm in another order."""
    one, two = (results[name][:RECOMPUTED_STEPS] for results, _ in layouts)
    assert recomputed["two"][name] == two
    for ours, theirs in zip(recomputed["zero3"][name], one, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


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
