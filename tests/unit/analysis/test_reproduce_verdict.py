"""The verdicts on DeepNet's claims, on curves made up both ways."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pretrain.analysis.reproduce_deepnet import SETTINGS, Curve, Setting
from pretrain.analysis.reproduce_deepnet_verdict import (
    NOT_SEEN,
    PARTLY,
    SEEN,
    UNDECIDED,
    depth_verdict,
    late_fall,
    stuck_verdict,
    verdicts,
)

STEPS = 40
WARM, COLD = True, False


def curve(update, loss=None):
    update = np.array(update, dtype=float)
    loss = np.linspace(8.0, 6.0, len(update)) if loss is None else np.array(loss, dtype=float)
    return Curve(update, np.full(len(update), math.nan), np.full(len(update), math.nan), loss)


def rising(first):
    """An update that grows evenly from `first`."""
    return curve(first * np.arange(1, STEPS + 1))


def with_growth(deepnorm, post_ln):
    """Curves of 6+6 and 100+100 layers, with these factors between them; 24+24 does not count."""
    found = {setting: {} for setting in SETTINGS}
    found[Setting("deepnorm", WARM)] = {6: rising(0.1), 24: rising(7.0), 100: rising(0.1 * deepnorm)}
    found[Setting("post_ln", WARM)] = {6: rising(0.2), 24: rising(0.01), 100: rising(0.2 * post_ln)}
    return found


@pytest.mark.parametrize(
    ("deepnorm", "post_ln", "result"),
    [
        (1.1, 8.0, SEEN),
        (0.7, 8.0, SEEN),
        (2.5, 16.0, PARTLY),  # DeepNorm is not constant
        (0.3, 8.0, PARTLY),  # nor is what shrinks
        (1.1, 1.5, PARTLY),  # Post-LN does not grow
        (1.9, 3.0, PARTLY),  # nor more than DeepNorm
        (4.0, 5.0, NOT_SEEN),
    ],
)
def test_depth(deepnorm, post_ln, result):
    verdict = depth_verdict(with_growth(deepnorm, post_ln))
    assert verdict.result == result
    assert f"with DeepNorm, {deepnorm:.3g} times" in verdict.words
    assert f"with Post-LN, {post_ln:.3g} times" in verdict.words
    assert "6+6 to 100+100" in verdict.words


def test_depth_says_which_half_is_missing():
    assert "not nearly constant" in depth_verdict(with_growth(2.5, 16.0)).words
    assert "no clear growth" in depth_verdict(with_growth(1.1, 1.5)).words


def test_one_depth_decides_nothing():
    curves = with_growth(1.0, 8.0)
    curves[Setting("post_ln", WARM)] = {6: rising(0.2)}
    assert depth_verdict(curves).result == UNDECIDED
    curves[Setting("post_ln", WARM)] = {6: rising(0.2), 12: curve([math.nan] * STEPS)}
    assert depth_verdict(curves).result == UNDECIDED, "what was not measured is no depth"


JUMPING = curve([9.0] * 3 + [10.0] * (STEPS - 3), [8.0, 7.2] + [7.0] * (STEPS - 2))


def cold(post_ln, deepnorm=None):
    found = {setting: {} for setting in SETTINGS}
    found[Setting("deepnorm", COLD)] = {6: rising(0.1), 50: deepnorm or rising(0.2)}
    found[Setting("post_ln", COLD)] = {6: rising(0.1), 50: post_ln, 100: rising(0.1)}
    return found


def test_a_jump_that_goes_flat():
    """On the deepest that both have trained: 50, although Post-LN has 100 as well."""
    verdict = stuck_verdict(cold(JUMPING))
    assert verdict.result == SEEN
    assert "At 50+50 layers the update reaches 100%" in verdict.words
    assert "0% of the fall of the loss come in that half, and it ends 0.92 nats above DeepNorm's" in verdict.words


@pytest.mark.parametrize(
    ("post_ln", "missing"),
    [
        (curve(np.minimum(np.linspace(0, 20, STEPS + 1)[1:], 10), [7.0] * STEPS), "no jump"),
        (curve([9.0] * 30 + [12.0] * (STEPS - 30), [7.0] * STEPS), "not flat"),
        (curve([10.0] * STEPS, np.linspace(8.0, 6.0, STEPS)), "not stuck"),
    ],
)
def test_one_part_is_missing(post_ln, missing):
    verdict = stuck_verdict(cold(post_ln))
    assert verdict.result == PARTLY
    assert missing in verdict.words


def test_what_stands_still_where_deepnorm_does_too_is_not_stuck():
    verdict = stuck_verdict(cold(JUMPING, curve([1.0] * STEPS, [8.0] + [6.95] * (STEPS - 1))))
    assert verdict.result == PARTLY
    assert "0.05 nats above DeepNorm's (not stuck" in verdict.words


def test_late_fall():
    """14 of the 39 equal steps of a straight line lie between the middles of those thirds; 36.5 of them to its end."""
    assert late_fall(rising(1.0)) == pytest.approx(14 / 36.5)
    assert late_fall(JUMPING) == 0.0


def test_none_of_it():
    assert stuck_verdict(cold(rising(0.2))).result == NOT_SEEN


def test_nothing_at_all():
    empty = {setting: {} for setting in SETTINGS}
    assert [verdict.result for verdict in verdicts(empty)] == [UNDECIDED, UNDECIDED]
    short = {setting: {6: rising(1.0), 12: rising(1.0)} for setting in SETTINGS}
    for by_depth in short.values():
        for depth, long in by_depth.items():
            by_depth[depth] = curve(long.update[:3])
    assert [verdict.result for verdict in verdicts(short)] == [PARTLY, UNDECIDED]
