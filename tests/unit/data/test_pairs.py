"""Packing is exact: every pair once an epoch, whole, both sides in the same sample under the same number."""

from itertools import pairwise

import numpy as np
import pytest
from pairs_by_hand import pairs_of
from tokens_by_hand import BOS, EOS, WORDS

from pretrain.data.pairs import PairSamples, mixed, pack
from pretrain.data.tokens import TokenFile, TokenWriter
from pretrain.errors import DataError
from pretrain.objectives.translation import Translation, TranslationConfig

SOURCE, TARGET = 24, 30


def random_pairs(count, longest=18, seed=0):
    """(source, target) without eos; lengths 1 .. longest, a pair's tokens name it."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, longest + 1, (count, 2))
    return [([10 + i] * a, [10 + count + i] * b) for i, (a, b) in enumerate(sizes.tolist())]


@pytest.fixture
def make(tmp_path):
    def make(pairs, packed=True, split="train", seed=1, target_length=TARGET):
        with TokenWriter(tmp_path / "tokens", 65_000) as writer:
            for side in (side for pair in pairs for side in pair):
                writer.append([*side, EOS])
                writer.end_document()
        objective = Translation(TranslationConfig(target_length=target_length), WORDS, SOURCE, packed)
        return PairSamples(TokenFile(tmp_path / "tokens"), objective, seed, split, split == "train", "name")

    return make


def found_in(samples, indices):
    return [pair for index in indices for pair in pairs_of(samples[index])]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_pair_is_whole_in_one_sample_of_each_epoch(make, packed, split):
    pairs = random_pairs(200)
    samples = make(pairs, packed, split)
    for epoch in range(2):
        found = found_in(samples, range(epoch * len(samples), (epoch + 1) * len(samples)))
        assert sorted(found) == sorted(pairs)


def test_packing_fills_the_samples_and_leaves_no_room_unused(make):
    pairs = random_pairs(200, longest=9)
    samples = make(pairs, split="validation")
    packs = [pairs_of(samples[index]) for index in range(len(samples))]
    assert len(make(pairs, packed=False)) == 200
    assert 200 / len(samples) > 2
    for pack_, following in pairwise(packs):
        source, target = (sum(len(pair[side]) + 1 for pair in [*pack_, following[0]]) for side in (0, 1))
        assert source > SOURCE or target > TARGET  # the next pair did not fit


def test_neighbours_of_the_file_are_spread_over_the_samples(make):
    samples = make(random_pairs(200), split="validation")
    order = [source[0] - 10 for source, _ in found_in(samples, range(len(samples)))]
    assert order != sorted(order)
    assert sum(abs(a - b) == 1 for a, b in pairwise(order)) < 20  # 2 expected of 199


def test_a_sample_is_a_function_of_seed_epoch_and_index(make):
    pairs = random_pairs(120)
    first, again, other = make(pairs), make(pairs), make(pairs, seed=2)
    count = len(first)
    for index in np.random.default_rng(1).permutation(2 * count).tolist():
        assert all((first[index][name] == again[index][name]).all() for name in first[index])
    texts = [[first.text(epoch * count + i).tolist() for i in range(count)] for epoch in range(2)]
    assert texts[0] != texts[1]
    assert sorted(texts[0]) == sorted(texts[1])  # packs stay together
    assert texts[0] != [other.text(i).tolist() for i in range(count)]
    assert len({first.key(i) for i in range(3 * count)}) == 3 * count


def test_pairs_that_are_too_long_are_left_out_and_counted(make):
    pairs = random_pairs(50)
    long = [([5] * SOURCE, [6]), ([5], [6] * TARGET), ([7] * SOURCE, [8] * TARGET)]
    fitting = [([5] * (SOURCE - 1), [6] * (TARGET - 1))]
    for packed in (True, False):
        samples = make([*long, *pairs, *fitting], packed)
        assert sorted(found_in(samples, range(len(samples)))) == sorted([*pairs, *fitting])
        assert samples.left_out.startswith("3 of 54 pairs")
        assert make(pairs, packed).left_out is None


def test_no_pair_that_fits_is_one_line(make):
    with pytest.raises(DataError, match=r"data\.train: none of the 1 pairs fits data\.sequence_length = 24"):
        make([([5] * SOURCE, [6])])
    with pytest.raises(DataError, match=r"data\.validation: no pair is left"):
        make([], split="validation")


def test_filling_is_counted_in_words(make):
    samples = make([([5] * 11, [6] * 14)] * 4)  # two of 12 and 15 fill a sample
    assert samples.contents == "2.00 pairs (mean), 100.0% of the source and 100.0% of the target filled"
    assert make([([5] * 11, [6] * 14)] * 4, packed=False).contents.startswith("1.00 pairs (mean), 50.0%")


def test_pack_by_hand():
    room = np.array([10, 10])
    assert pack(np.array([[4, 1], [6, 1], [1, 1], [1, 9], [1, 1]]), room).tolist() == [0, 2, 4, 5]
    assert pack(np.array([[10, 10]]), room).tolist() == [0, 1]
    assert pack(np.empty((0, 2), int), room).tolist() == [0]


def test_the_mixed_order_is_a_permutation_that_never_changes():
    assert sorted(mixed(1000).tolist()) == list(range(1000))
    assert mixed(8).tolist() == [2, 4, 6, 5, 1, 7, 0, 3]


def test_bos_opens_every_target(make):
    sample = make(random_pairs(60), split="validation")[0]
    numbers, ids = sample["decoder_attention_mask"], sample["decoder_input_ids"]
    starts = np.flatnonzero(np.diff(numbers, prepend=0) > 0)
    assert (ids[starts] == BOS).all()
    assert np.count_nonzero(ids == BOS) == len(starts) > 1
