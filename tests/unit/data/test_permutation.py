"""The keyed bijection: a permutation, different for each key, without favourite places."""

import numpy as np
import pytest

from pretrain.data.permutation import Permutation


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 255, 256, 257, 1441, 5000])
def test_every_index_comes_once(size):
    order = Permutation(size, "order", 7)
    assert sorted(order[i] for i in range(size)) == list(range(size))


def test_sizes_beyond_memory_work():
    order = Permutation(10**15 + 3, "order", 1)
    places = [order[i] for i in range(2000)]
    assert len(set(places)) == 2000
    assert 0.45 < np.mean(places) / 10**15 < 0.55


def test_the_same_key_gives_the_same_order_another_key_another_one():
    def order(*key):
        shuffled = Permutation(500, *key)
        return [shuffled[i] for i in range(500)]

    assert order("a", 1) == order("a", 1)
    for other in (order("a", 2), order("b", 1)):
        same = sum(x == y for x, y in zip(order("a", 1), other, strict=True))
        assert same < 10


@pytest.mark.parametrize("size", [5, 13])
def test_no_place_is_favoured_over_keys(size):
    keys = 2000
    counts = np.zeros((size, size))
    for key in range(keys):
        order = Permutation(size, key)
        counts[np.arange(size), [order[i] for i in range(size)]] += 1
    expected = keys / size
    chi_squared = ((counts - expected) ** 2 / expected).sum() / ((size - 1) ** 2)
    assert chi_squared < 2


def test_neighbours_do_not_stay_neighbours():
    order = Permutation(10_000, "x")
    steps = np.diff([order[i] for i in range(10_000)])
    assert np.abs(steps).mean() == pytest.approx(10_000 / 3, rel=0.05)
    assert np.unique(steps).size > 5000


def test_outside_is_refused():
    for index in (-1, 5):
        with pytest.raises(IndexError):
            Permutation(5, "x")[index]
    with pytest.raises(ValueError, match="at least one"):
        Permutation(0, "x")
