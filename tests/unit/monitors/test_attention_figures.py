"""Attention logits and entropy: known values, what is left out, and that the size of a piece changes nothing."""

from __future__ import annotations

import activations_by_hand as by_hand
import pytest
import torch

from pretrain.monitors import logits
from pretrain.monitors.logits import Sight, logit_figures, visible

torch.set_num_threads(1)
N, HEADS, LENGTH, SIZE = 2, 3, 5, 4
ALL = torch.ones(N, LENGTH, dtype=torch.bool)


def figures(q, k, seen):
    """large [H], pairs, entropy [H], queries, largest [H], smallest entropy [H]"""
    sight = Sight.of(seen)
    sums, maxima = logit_figures(torch.stack((q, 0 * q)), torch.stack((k, k)), sight)  # two layers
    (large, entropy), (largest, smallest) = sums[0], maxima[0]
    pairs, queries = sight.counts.tolist()
    return large, pairs, entropy, queries, largest, -smallest


def test_equal_logits_are_uniform():
    """Zero queries: entropy 1 whatever number of keys a query sees; the causal first query sees one and is left out."""
    k = torch.randn(N, HEADS, LENGTH, SIZE, generator=torch.Generator().manual_seed(1))
    for causal, queries in ((False, N * LENGTH), (True, N * (LENGTH - 1))):
        large, pairs, entropy, counted, largest, smallest = figures(
            torch.zeros_like(k), k, visible(ALL, LENGTH, None, causal)
        )
        assert counted == queries
        assert (entropy / counted).tolist() == pytest.approx([1.0] * HEADS, rel=1e-6)
        assert smallest.tolist() == pytest.approx([1.0] * HEADS, rel=1e-6)
        assert pairs == N * (LENGTH * (LENGTH + 1) // 2 if causal else LENGTH**2)
        assert large.tolist() == largest.tolist() == [0.0] * HEADS


def test_one_hot_attention_has_no_entropy():
    """q_i = 1000 e_i and k_i = e_i, d_h = 4: one logit of 500 a query and one of -500 beside zeros."""
    q = 1000 * torch.eye(SIZE).expand(N, HEADS, SIZE, SIZE)
    k = torch.eye(SIZE).repeat(N, HEADS, 1, 1)
    k[:, :, 0, 1] = -1.0
    large, pairs, entropy, counted, largest, smallest = figures(q, k, visible(ALL[:, :SIZE], SIZE, None, causal=False))
    assert counted == N * SIZE
    assert entropy.tolist() == smallest.tolist() == [0.0] * HEADS
    assert largest.tolist() == [500.0] * HEADS
    assert (large / pairs).tolist() == pytest.approx([(SIZE + 1) / SIZE**2] * HEADS)


def test_heads_are_apart():
    q = torch.ones(1, 2, 3, 4)
    q[:, 1] *= 10
    k = torch.ones(1, 2, 3, 4)
    assert figures(q, k, visible(ALL[:1, :3], 3, None, causal=False))[4].tolist() == [2.0, 20.0]


@pytest.mark.parametrize("elements", [1, 60, logits.ELEMENTS])
def test_masks_and_padding(monkeypatch, elements):
    """Ragged keys and queries, query by query; hidden logits and those of padding are huge."""
    monkeypatch.setattr(logits, "ELEMENTS", elements)
    generator = torch.Generator().manual_seed(2)
    q, k = (3 * torch.randn(N, HEADS, length, SIZE, generator=generator) for length in (LENGTH, 6))
    keys = torch.arange(6) < torch.tensor([[4], [1]])
    queries = torch.arange(LENGTH) < torch.tensor([[5], [3]])
    q[1, :, 4], k[0, :, 5] = 1e10, 1e10
    seen = visible(queries, 6, keys[:, None, None, :], causal=True)  # a mask is complete, also where causal
    assert seen.shape == (N, 1, LENGTH, 6)
    by_pair = queries[:, :, None] & keys[:, None, :]
    assert torch.equal(seen[:, 0], by_pair)
    large, pairs, entropy, counted, largest, smallest = figures(q, k, seen)
    assert pairs == 23
    assert counted == 5  # those of sample 1 see one key
    found = [largest, large / pairs, entropy / counted, smallest]
    expected = by_hand.attention(q.double(), k.double(), by_pair)
    for values, name in zip(found, by_hand.ATTENTION, strict=True):
        assert values.tolist() == pytest.approx(expected[name], rel=1e-5, abs=1e-6), name
