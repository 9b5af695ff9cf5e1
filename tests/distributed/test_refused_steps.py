"""A step that the judge refuses leaves nothing behind in any engine: the next ones are bit for bit as without it."""

from __future__ import annotations

import numpy as np
import pytest
from harness import run_group
from targets_policy import SCALE, refused_step

LAYOUTS = {
    "one_scaled": (1, {}),
    "zero0_dp2": (2, {"parallel.zero_stage": 0}),
    "offload_zero2_dp2": (2, {"parallel.zero_stage": 2, "parallel.offload_optimizer": True}),
    "zero3_dp2": (2, {"parallel.zero_stage": 3}),
    "pp2_dp2": (4, {"parallel.pipeline_stages": 2}),
    "bf16_zero1_dp2": (2, {"train.precision": "bf16"}),
    "bf16_pp2": (2, {"train.precision": "bf16", "parallel.pipeline_stages": 2}),
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank of a layout found, trained when first asked for: [(with a refused step, without)]."""
    done = {}

    def get(layout):
        if layout not in done:
            processes, changes = LAYOUTS[layout]
            log = tmp_path_factory.mktemp(layout)
            done[layout] = run_group(refused_step, processes, changes, log, layout.endswith("scaled"))
        return done[layout]

    return get


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_step_changes_nothing_and_says_why(ranks, layout):
    for disturbed, _ in ranks(layout):
        refused = disturbed["refused"]
        assert refused.skipped
        assert (refused.refusal.reason, refused.refusal.figures) == ("for once", {"figure": 1.0})
        assert refused.finite, "the norm is that of the gradient, not DeepSpeed's inf"
        assert disturbed["unchanged"], "weights, what the forward pass uses, moments, Adam's count"
        assert disturbed["updates"] == 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_steps_after_it_are_as_without_it(ranks, layout):
    for disturbed, clean in ranks(layout):
        assert disturbed["results"] == clean["results"]
        for quantity in ("weight", "exp_avg", "exp_avg_sq"):
            for ours, theirs in zip(disturbed[quantity], clean[quantity], strict=True):
                assert ours[:4] == theirs[:4]
                np.testing.assert_array_equal(ours[4], theirs[4], err_msg=ours[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_rank_is_asked_the_same(ranks, layout):
    """And the figures are the step's: its loss, summed in another order, and its norm before clipping."""
    found = ranks(layout)
    results = found[0][0]["results"]
    for disturbed, _ in found:
        assert disturbed["asked"] == found[0][0]["asked"]
    first, refused, *rest = found[0][0]["asked"]
    for (loss, norm), result in zip((first, *rest), results, strict=True):
        # A loss in bf16's pipeline is summed in fp32 over micro-batches: 1e-6.
        assert (loss, norm) == pytest.approx((result.loss, result.grad_norm), rel=2e-6)
    assert refused == pytest.approx((found[0][0]["refused"].loss, found[0][0]["refused"].grad_norm), rel=2e-6)


def test_a_refusal_is_no_overflow_of_the_loss_scale(ranks):
    ((disturbed, clean),) = ranks("one_scaled")
    assert disturbed["scaler"] == clean["scaler"]
    assert disturbed["scaler"]["cur_scale"] == SCALE
