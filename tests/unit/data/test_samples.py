"""Samples are pure functions of (seed, epoch, index), and each epoch uses all of the text once."""

import numpy as np
import pytest

from pretrain.data.samples import Samples
from pretrain.objectives.span_denoising import SpanDenoising, SpanDenoisingConfig
from pretrain.objectives.tokens import SpecialTokens

NOISER = SpanDenoising(SpanDenoisingConfig(), SpecialTokens(0, 1, 2, 3, tuple(range(4, 104))), 32)
TOKENS = np.random.default_rng(0).integers(104, 800, NOISER.raw_length * 50 + 11).astype(np.uint16)


def make(seed=1, split="train", tokens=TOKENS):
    return Samples(tokens, NOISER, seed, split, shuffle=split == "train")


def same(a, b):
    return all((a[name] == b[name]).all() for name in a)


def test_an_epoch_uses_every_piece_once_in_a_new_order():
    samples = make()
    assert len(samples) == 50
    pieces = TOKENS[: 50 * NOISER.raw_length].reshape(50, -1).tolist()
    orders = []
    for epoch in range(2):
        texts = [samples.text(epoch * 50 + i).tolist() for i in range(50)]
        assert sorted(texts) == sorted(pieces)
        orders.append([pieces.index(text) for text in texts])
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


def test_the_order_of_asking_does_not_matter():
    samples = make()
    forwards = [samples[i] for i in range(120)]
    again = make()
    for index in np.random.default_rng(1).permutation(120):
        assert same(again[int(index)], forwards[index])


def test_seed_split_and_epoch_change_the_noise():
    first = make()[3]
    assert not same(first, make(seed=2)[3])
    samples = make()
    text = samples.text(3).tolist()
    later = next(i for i in range(50, 100) if samples.text(i).tolist() == text)
    assert not same(first, samples[later])  # the same text, other noise


def test_validation_is_in_order_and_repeats():
    samples = make(split="validation")
    assert (samples.text(2) == TOKENS[2 * NOISER.raw_length : 3 * NOISER.raw_length]).all()
    assert same(samples[2], samples[52])
    assert samples.key(2) == samples.key(52)


def test_keys_are_distinct_and_of_63_bits():
    samples = make()
    keys = [samples.key(i) for i in range(1000)]
    assert len(set(keys)) == 1000
    assert all(0 <= key < 2**63 for key in keys)
    assert keys[0] != make(seed=2).key(0)


def test_a_corpus_shorter_than_a_sample_is_padded():
    samples = make(tokens=TOKENS[:9])
    assert len(samples) == 1
    sample = samples[5]
    assert sample["input_ids"].shape == (32,)
    assert 0 < sample["attention_mask"].sum() < 32


def test_wrong_use_is_refused():
    with pytest.raises(IndexError):
        make()[-1]
    with pytest.raises(ValueError, match="no tokens"):
        make(tokens=TOKENS[:0])
