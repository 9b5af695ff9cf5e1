"""Two stages compute what one process does, for every family and block."""

from __future__ import annotations

import pytest
from harness import Group
from targets_families import STEPS, cases, run_cases


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """Results of one process and of two stages, run at the same time."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    groups = [Group(run_cases, stages, stages, str(folder)) for stages, folder in zip((1, 2), folders, strict=True)]
    return [group.results(timeout=400)[0] for group in groups]


@pytest.mark.parametrize("name", [name for name, _, _ in cases()])
def test_two_stages_train_as_one_process_does(layouts, name):
    """fp32: sums are taken in another order, and ten steps carry that on."""
    one, two = (results[name] for results in layouts)
    assert len(one) == len(two) == STEPS
    for step, (ours, theirs) in enumerate(zip(two, one, strict=True), start=1):
        assert ours == pytest.approx(theirs, rel=1e-5), f"step {step}"
    assert len({loss for loss, _ in one}) == STEPS, "the loss stands still"
