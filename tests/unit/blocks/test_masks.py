"""Masks against direct loops over every pair of positions."""

from __future__ import annotations

import itertools

import pytest
import targets_equations as equations
import torch

from pretrain.blocks.masks import document_positions, padding_mask, segment_mask


def sample(generator, length, prefixes):
    """One sample's mask: up to four documents, some with a prefix, then padding."""
    mask, document = [], 0
    while len(mask) < length and document < 4:
        document += 1
        size = int(torch.randint(1, 6, (), generator=generator))
        prefix = int(torch.randint(0, size + 1, (), generator=generator)) if prefixes else 0
        mask += [-document] * prefix + [document] * (size - prefix)
    return (mask + [0] * length)[:length]


def masks(seed, length=14, count=12, prefixes=False):
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor([sample(generator, length, prefixes) for _ in range(count)])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("prefixes", [True, False])
def test_segments_pair_by_pair(causal, prefixes):
    keys = masks(3, prefixes=prefixes)
    assert (keys == 0).any()
    assert (keys.abs() == 3).any()
    assert (keys < 0).any() == prefixes
    found = segment_mask(keys, keys, causal)
    assert found.shape == (12, 1, 14, 14)
    assert found.dtype == torch.bool
    assert torch.equal(found[:, 0], equations.who_sees_whom(keys, keys, causal))
    assert found.any(-1).all(), "a row without any key would be not a number"


def test_segments_of_two_sequences():
    queries, keys = masks(4, length=9), masks(5, length=13, prefixes=True)
    found = segment_mask(queries, keys, causal=False)
    assert found.shape == (12, 1, 9, 13)
    assert torch.equal(found[:, 0], equations.who_sees_whom(queries, keys, causal=False))


def test_one_document_is_plain_causal_attention_and_a_whole_prefix_is_bidirectional():
    ones = torch.ones(2, 6, dtype=torch.int64)
    assert torch.equal(segment_mask(ones, ones, causal=True)[0, 0], torch.ones(6, 6, dtype=torch.bool).tril())
    assert segment_mask(-ones, -ones, causal=True).all()
    assert segment_mask(ones, ones, causal=False).all()


def test_prefix_by_hand():
    """A prefix of two, three tokens behind it, and padding."""
    mask = torch.tensor([[-1, -1, 1, 1, 1, 0]])
    rows = ["110000", "110000", "111000", "111100", "111110", "111111"]
    expected = torch.tensor([[c == "1" for c in row] for row in rows])
    assert torch.equal(segment_mask(mask, mask, causal=True)[0, 0], expected)


def test_padding():
    keys = torch.tensor([[1, 1, 0], [2, -2, 3], [0, 1, 0]])
    expected = [[True, True, False], [True, True, True], [False, True, False]]
    assert padding_mask(keys).shape == (3, 1, 1, 3)
    assert padding_mask(keys)[:, 0, 0].tolist() == expected


@pytest.mark.parametrize("prefixes", [True, False])
def test_positions_count_anew_in_every_document(prefixes):
    mask = masks(6, prefixes=prefixes)
    expected = []
    for row in mask.abs().tolist():
        counted = [0]
        for before, here in itertools.pairwise(row):
            counted.append(counted[-1] + 1 if before == here else 0)
        expected.append(counted)
    found = document_positions(mask)
    assert found.dtype == torch.int64
    assert found.tolist() == expected
    assert document_positions(torch.tensor([[-1, -1, 1, 1, 2, 2, 0, 0]])).tolist() == [[0, 1, 2, 3, 0, 1, 0, 1]]
    assert document_positions(torch.tensor([[5]])).tolist() == [[0]]
