"""Which tries of a step are outliers, spikes or not finite, from their losses and gradient norms alone."""

from __future__ import annotations

import json
import math

import pytest

from pretrain.config.schema import PolicySection
from pretrain.monitors.step_watch import LOSS_NOT_FINITE, StepWatch
from pretrain.parallel.engine import NOT_FINITE, StepResult

CALM = [5.0, 5.2, 4.9, 5.1, 5.3, 4.8, 5.0, 5.1, 5.2, 4.9]


def watch(calm=CALM, **policy):
    """After these losses, with gradient norms a tenth of them."""
    found = StepWatch(PolicySection(window=16, on_outlier=("skip",), **policy))
    for step, loss in enumerate(calm, start=1):
        found.begin(step)
        assert found.judge(loss, loss / 10) is None
        found.made()
    found.begin(len(calm) + 1)
    return found


@pytest.mark.parametrize(("loss", "norm", "named"), [(9.0, 0.5, "loss"), (5.0, 3.0, "grad_norm"), (9.0, 3.0, "loss")])
def test_an_outlier_is_refused_with_its_deviations(loss, norm, named):
    refusal = watch().judge(loss, norm)
    assert refusal.reason.startswith(f"outlier: {named} ")
    high = {name for name, value in (("loss", loss > 6), ("grad_norm", norm > 1)) if value}
    assert set(refusal.figures) == {f"{name}_sigmas" for name in high}
    # Median 5.05 and median deviation 0.15 of the losses: (9 - 5.05) / (1.4826 x 0.15)
    if loss > 6:
        assert refusal.figures["loss_sigmas"] == pytest.approx(3.95 / (1.4826 * 0.15), rel=1e-9)


def test_what_lies_low_or_within_is_made():
    for loss, norm in ((0.1, 0.5), (5.0, 0.0), (5.05 + 5.9 * 1.4826 * 0.15, 0.5)):
        assert watch().judge(loss, norm) is None


def test_an_outlier_is_no_part_of_what_the_next_are_measured_against():
    patient = watch()
    for _ in range(30):
        assert patient.judge(9.0, 0.5) is not None


def test_too_few_steps_say_nothing():
    assert watch(CALM[:7]).judge(900.0, 90.0) is None


def test_without_skip_it_is_made_and_known():
    found = watch()
    found.policy = PolicySection(window=16, on_spike=("rollback",))
    assert found.judge(9.0, 0.5) is None
    assert set(found.outlier) == {"loss_sigmas"}
    found.begin(12)
    assert found.outlier == {}


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused(loss):
    found = watch()
    assert found.judge(loss, 0.5).reason == LOSS_NOT_FINITE
    assert found.judge(5.0, 0.5) is None


def test_spikes_are_counted_in_a_row_whether_made_or_not():
    for policy in ({"on_outlier": ("skip",)}, {"on_outlier": (), "on_spike": ("stop",)}):
        found = watch()
        found.policy = PolicySection(window=16, **policy)
        found.judge(9.0, 0.5)
        found.begin(12)
        found.judge(9.5, 0.5)
        assert (found.spikes, found.spikes_since) == ([9.0, 9.5], 11)
        found.judge(5.0, 0.5)
        assert found.spikes == []
        found.begin(13)
        found.judge(9.0, 0.5)
        assert (found.spikes, found.spikes_since) == ([9.0], 13)


def test_a_spike_has_its_own_bound():
    found = watch(sigmas=100.0, spike_score=3.0)
    assert found.judge(5.05 + 4 * 1.4826 * 0.15, 0.5) is None
    assert len(found.spikes) == 1


def test_tries_that_are_not_finite_are_counted_in_a_row():
    found = watch()
    result = StepResult(loss=math.nan, target_tokens=8, grad_norm=2.0, grad_norm_clipped=1.0, refusal=NOT_FINITE)
    for broken, count in ((True, 1), (True, 2), (False, 0), (True, 1)):
        found.threw_away(result, broken)
        assert len(found.broken) == count
    assert found.broken_since == 11
    assert found.broken[0][1] == 2.0
    found.made()
    assert found.broken == []


def test_it_goes_on_after_a_resume():
    """The same decisions: the state is JSON and holds all that they depend on."""
    found = watch()
    found.judge(9.0, 0.5)
    again = StepWatch(found.policy)
    again.load_state_dict(json.loads(json.dumps(found.state_dict())))
    again.begin(12)
    found.begin(12)
    for loss in (9.0, 5.5, 5.7, 6.5):
        assert found.judge(loss, loss / 10) == again.judge(loss, loss / 10)
        assert (found.spikes, found.spikes_since) == (again.spikes, again.spikes_since)
