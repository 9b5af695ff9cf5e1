"""Translation: one pair or several become the arrays of an encoder-decoder; nothing is cut."""

import numpy as np
import pytest
from pairs_by_hand import pairs_of
from pydantic import ValidationError
from tokens_by_hand import BOS, EOS, PAD, WORDS, different, rng

from pretrain.errors import ConfigError
from pretrain.objectives.translation import Translation, TranslationConfig


def make(source=8, target=None, document_mask=False):
    return Translation(TranslationConfig(target_length=target), WORDS, source, document_mask)


def stored(*pairs):
    return np.array([token for pair in pairs for side in pair for token in (*side, EOS)])


def test_one_pair_by_hand():
    sample = make(6, 5).sample(stored(([11, 12], [21, 22, 23])), rng())
    assert {name: array.tolist() for name, array in sample.items()} == {
        "input_ids": [11, 12, EOS, PAD, PAD, PAD],
        "attention_mask": [1, 1, 1, 0, 0, 0],
        "decoder_input_ids": [BOS, 21, 22, 23, PAD],
        "labels": [21, 22, 23, EOS, -100],
    }


def test_packed_pairs_by_hand():
    sample = make(6, 7, document_mask=True).sample(stored(([11], [21, 22]), ([12, 13], [23])), rng())
    assert {name: array.tolist() for name, array in sample.items()} == {
        "input_ids": [11, EOS, 12, 13, EOS, PAD],
        "attention_mask": [1, 1, 2, 2, 2, 0],
        "decoder_input_ids": [BOS, 21, 22, BOS, 23, PAD, PAD],
        "labels": [21, 22, EOS, 23, EOS, -100, -100],
        "decoder_attention_mask": [1, 1, 1, 2, 2, 0, 0],
    }


def test_segments_follow_the_document_mask_and_lengths_the_keys():
    assert not make().segmented
    assert make(document_mask=True).segmented
    assert (make(8).source_length, make(8).target_length) == (8, 8)
    assert (make(8, 5).source_length, make(8, 5).target_length) == (8, 5)


def test_nothing_is_cut_silently():
    full = stored((different(7), different(4)))
    assert pairs_of(make(8, 5).sample(full, rng())) == [(different(7).tolist(), different(4).tolist())]
    for pair in ((different(8), different(4)), (different(7), different(5))):
        with pytest.raises(ValueError, match="do not fit"):
            make(8, 5).sample(stored(pair), rng())
    for broken in (full[:-1], full[:8], np.append(full, 400)):
        with pytest.raises(ValueError, match="source eos target eos"):
            make(8, 5, document_mask=True).sample(broken, rng())
    with pytest.raises(ValueError, match="document_mask"):
        make(8).sample(stored(([11], [12]), ([13], [14])), rng())


@pytest.mark.parametrize(("source", "target"), [(8, 8), (9, 4), (4, 9), (2, 2)])
def test_text_that_is_no_pair_is_divided(source, target):
    objective = make(source, target)
    for length in range(objective.raw_length + 1):
        ((first, second),) = pairs_of(objective.sample(different(length), rng()))
        assert first + second == different(length).tolist()
    assert (len(first), len(second)) == (source - 1, target - 1)


@pytest.mark.parametrize(
    ("source", "target", "key"), [(1, 8, "data.sequence_length"), (8, 1, "objective.target_length")]
)
def test_a_length_without_room_is_refused(source, target, key):
    with pytest.raises(ConfigError, match=f"^{key}: 1 is too short"):
        make(source, target)
    make(max(source, 2), max(target, 2))


def test_names_of_languages_are_names_of_folders():
    for name in ("de", "pt_BR", "sr@latin", "zh_Hans", "ca@valencia"):
        assert TranslationConfig(target_language=name).target_language == name
    for name in ("", "../de", "de/x", "german"):
        with pytest.raises(ValidationError):
            TranslationConfig(target_language=name)
