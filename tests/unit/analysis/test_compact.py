"""Thinning and codes: what they keep, how exactly, and in how little room."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from pretrain.analysis.compact import evenly, pack_matrix, plain, script_json, short, thin_curve, unpack_matrix


def test_codes_are_right_to_a_fifth_of_a_percent_over_thirty_decades() -> None:
    values = 10 ** np.random.default_rng(0).uniform(-15, 15, size=(40, 500))
    packed = pack_matrix(values)
    assert packed["scale"] == "log"
    np.testing.assert_allclose(unpack_matrix(packed), values, rtol=2.01e-3)


def test_codes_over_more_decades_than_there_are_codes_for_are_still_even() -> None:
    values = 10 ** np.random.default_rng(0).uniform(-300, 300, size=(10, 100))
    np.testing.assert_allclose(np.log(unpack_matrix(pack_matrix(values))), np.log(values), atol=600 / 65531 * 2.303)


def test_values_that_lie_close_together_are_told_apart() -> None:
    values = np.linspace(1.0, 1.01, 500)[None]
    assert len(np.unique(unpack_matrix(pack_matrix(values)))) == 500


def test_codes_of_signed_values_are_even() -> None:
    values = np.random.default_rng(0).normal(size=(20, 30))
    packed = pack_matrix(values)
    assert packed["scale"] == "linear"
    assert abs(unpack_matrix(packed) - values).max() <= (values.max() - values.min()) / 16000


def test_codes_of_a_signal_that_changes_little_take_little_room() -> None:
    noise = np.random.default_rng(0).normal(size=(200, 500))
    packed = pack_matrix(np.exp(np.linspace(-3, 3, 500) + 0.02 * noise))
    assert len(packed["codes"]) < 1.1 * noise.size


@pytest.mark.parametrize("base", [[1.0, 2.0], [-1.0, 2.0]])
def test_special_values_survive(base: list[float]) -> None:
    values = np.array([[*base, 0.0], [math.nan, math.inf, -math.inf]])
    np.testing.assert_allclose(unpack_matrix(pack_matrix(values)), values, atol=4e-3)
    assert json.loads(script_json(pack_matrix(values)))["rows"] == 2


@pytest.mark.parametrize(
    "values", [[[math.nan, math.nan]], [[0.0, 0.0]], [[3.5, 3.5]], [[-2.0, -2.0]], [[-1e308, 1e308]]]
)
def test_matrices_without_a_range(values: list[list[float]]) -> None:
    np.testing.assert_allclose(unpack_matrix(pack_matrix(np.array(values))), values, rtol=2e-3)


def test_thinned_curve_keeps_every_peak_and_dip() -> None:
    values = np.random.default_rng(0).normal(size=50_000)
    values[[17, 31_003]] = [40.0, -40.0]
    kept = thin_curve(values, 2000)
    assert len(kept) <= 2000
    assert {0, 17, 31_003, 49_999} <= set(kept.tolist())
    assert (np.diff(kept) > 0).all()
    blocks = np.array_split(np.arange(50_000), 100)
    assert all(values[block].max() == values[np.intersect1d(block, kept)].max() for block in blocks)


def test_short_curve_stays_whole() -> None:
    assert thin_curve(np.array([3.0, 1.0, 2.0]), 2000).tolist() == [0, 1, 2]
    assert thin_curve(np.empty(0), 2000).tolist() == []


@pytest.mark.parametrize(("count", "limit"), [(0, 2), (1, 2), (5, 2), (200, 199), (1000, 7), (7, 1000)])
def test_evenly_keeps_both_ends(count: int, limit: int) -> None:
    kept = evenly(count, limit)
    assert len(kept) == min(count, limit)
    if count:
        assert (kept[0], kept[-1]) == (0, count - 1)


def test_script_json_is_strict_and_cannot_close_its_element() -> None:
    value = {"a": "</script><script>alert(1)</script><!--\u2028", "b": [short(1 / 3), short(math.nan)]}
    text = script_json(value)
    assert "<" not in text
    assert "\u2028" not in text
    assert json.loads(text) == {**value, "b": [0.333333, None]}


def test_plain_names_what_json_has_no_word_for() -> None:
    assert plain({1: (math.nan, -math.inf, Path("x"), True, None)}) == {"1": ["nan", "-inf", "x", True, None]}
