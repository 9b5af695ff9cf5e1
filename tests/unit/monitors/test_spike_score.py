"""The robust z of a loss."""

from __future__ import annotations

import json
import math
import random
import statistics

import pytest

from pretrain.monitors.spike_score import SpikeScore


def filled(losses, window=128):
    score = SpikeScore(window)
    for loss in losses:
        score.add(loss)
    return score


def test_by_hand():
    """Median 5, deviations 4 3 2 1 0 1 2 3 4 of median 2."""
    score = filled(range(1, 10), window=9)
    assert score.score(5.0) == 0.0
    assert score.score(11.0) == pytest.approx(6 / (1.4826 * 2))
    assert score.score(-1.0) == pytest.approx(-6 / (1.4826 * 2))


def test_of_normal_losses_it_is_the_usual_z():
    draw = random.Random(0)
    losses = [draw.gauss(3.0, 0.1) for _ in range(2000)]
    score = filled(losses, window=2000)
    usual = (3.5 - statistics.mean(losses)) / statistics.stdev(losses)
    assert score.score(3.5) == pytest.approx(usual, rel=0.1)


def test_spikes_before_do_not_hide_the_next():
    """A quarter of the window spikes: mean and deviation would say 1.7."""
    score = filled([2.0 + 0.01 * (i % 5) + (8.0 if i % 4 == 0 else 0.0) for i in range(128)])
    assert score.score(10.0) > 100


def test_the_window_forgets():
    score = filled([*[9.0] * 50, *[1.0, 1.1, 0.9, 1.05] * 4], window=16)
    assert score.score(1.0) == pytest.approx(-0.025 / (1.4826 * 0.05))


@pytest.mark.parametrize(("window", "least"), [(4, 4), (16, 8), (128, 32)])
def test_none_until_there_is_a_history(window, least):
    score = filled([1.0 + 0.1 * i for i in range(least - 1)], window)
    assert score.score(1.0) is None
    score.add(1.0)
    assert score.score(1.0) is not None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite(bad):
    score = filled([1.0, 1.2, 0.8, 1.1] * 4, window=16)
    assert score.score(bad) is None
    before = score.score(2.0)
    score.add(bad)
    assert score.score(2.0) == before


def test_scoring_remembers_nothing():
    score = filled([1.0, 1.2, 0.8, 1.1] * 4, window=16)
    assert score.score(50.0) == score.score(50.0) > 100


def test_losses_that_are_all_alike():
    """The spread is rounding's; at 0 there is none to compare with."""
    score = filled([2.0] * 16, window=16)
    assert score.score(2.0) == 0.0
    assert score.score(2.1) > 1e5
    assert filled([0.0] * 16, window=16).score(1.0) is None


def test_its_state_goes_on_as_json_into_another_window():
    losses = [1.0, 1.3, 0.8, 1.1, 0.95, 1.25] * 4
    state = json.loads(json.dumps(filled(losses, window=24).state_dict()))
    for window in (24, 12):
        resumed = SpikeScore(window)
        resumed.load_state_dict(state)
        assert resumed.score(1.7) == filled(losses, window).score(1.7)
    fresh = filled(losses)
    fresh.load_state_dict({})  # of a checkpoint that has none
    assert fresh.score(1.0) is None
