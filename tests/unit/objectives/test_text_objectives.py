"""What all objectives over a stream of text have in common."""

import numpy as np
import pytest
from tokens_by_hand import EOS, WORDS, rng, text_of

from pretrain.data.samples import Samples
from pretrain.errors import UserError
from pretrain.objectives.arrays import padded, runs
from pretrain.objectives.registry import OBJECTIVES

KINDS = ("bart_denoising", "causal_lm", "masked_lm", "prefix_lm", "span_denoising")
CASES = [(kind, mask) for kind in KINDS for mask in (False, True) if OBJECTIVES[kind].maskable or not mask]


def build(kind, document_mask=False, length=48, **keys):
    return OBJECTIVES.build(OBJECTIVES.config(kind)(kind=kind, **keys), WORDS, length, document_mask)


def stream(length):
    text = text_of(length, seed=length)
    text[7::30] = EOS
    return text


@pytest.mark.parametrize(("kind", "document_mask"), CASES)
def test_every_length_gives_whole_arrays(kind, document_mask):
    objective = build(kind, document_mask)
    lengths = {"decoder_input_ids": objective.target_length, "labels": objective.target_length or 48}
    for length in range(objective.raw_length + 1):
        text = stream(length)
        before = text.copy()
        sample = objective.sample(text, rng(length))
        assert (text == before).all()
        for name, array in sample.items():
            assert array.dtype == np.int64
            assert array.shape == (lengths.get(name, objective.source_length or 48),)
        assert sample["attention_mask"].any()  # never a row without any key
        if "decoder_input_ids" not in sample:
            assert (sample["labels"][sample["attention_mask"] == 0] == -100).all()


@pytest.mark.parametrize(("kind", "document_mask"), CASES)
def test_the_same_index_gives_the_same_sample(kind, document_mask):
    one, other = (Samples(stream(2000), build(kind, document_mask), 5, "train", shuffle=True) for _ in range(2))
    rows = [other[index] for index in (9, 3, 40)]  # another order of asking
    for index, row in zip((9, 3, 40), rows, strict=True):
        assert all((one[index][name] == row[name]).all() for name in row)
    if kind != "causal_lm":  # which has no noise
        text = one.text(3)
        draws = [one.objective.sample(text, rng(seed)) for seed in (1, 2)]
        assert any((draws[0][name] != draws[1][name]).any() for name in draws[0])


@pytest.mark.parametrize(("kind", "document_mask"), CASES)
def test_longer_texts_are_refused_not_cut(kind, document_mask):
    objective = build(kind, document_mask)
    with pytest.raises(ValueError, match="do not fit"):
        objective.sample(text_of(objective.raw_length + 2), rng())


@pytest.mark.parametrize(("kind", "document_mask"), CASES)
def test_masks_number_what_is_told_apart(kind, document_mask):
    objective = build(kind, document_mask)
    values = set(objective.sample(stream(objective.raw_length), rng(3))["attention_mask"].tolist()) - {0}
    assert (values == {1}) == (not objective.segmented)
    assert len({abs(value) for value in values}) == (3 if document_mask else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_registered_with_their_families(kind):
    objective = OBJECTIVES[kind]
    assert objective.families <= {"decoder", "encoder", "encoder_decoder"}
    assert len(objective.families) == 1
    built = build(kind)
    (family,) = objective.families
    assert (built.source_length > 0) == ("encoder" in family)
    assert (built.target_length > 0) == ("decoder" in family)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("causal_lm", "prefix_lm")])
def test_a_length_without_room_is_one_line(kind):
    with pytest.raises(UserError, match=r"^data\.sequence_length: 1 is too short [^\n]*$"):
        build(kind, length=1)


def test_padding_never_cuts():
    assert padded(np.array([1, 2]), 3, -100).tolist() == [1, 2, -100]
    with pytest.raises(ValueError, match="2 values do not fit 1 places"):
        padded(np.array([1, 2]), 1, 0)


def test_runs():
    assert runs(np.array([5, 5, 1, 0, 0])) == [(0, 2), (2, 3), (3, 5)]
    assert runs(np.array([])) == []
