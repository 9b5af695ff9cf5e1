"""Causal language modelling: shifts, documents, and every token of the corpus a target."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tokens_by_hand import BOS, EOS, FIRST_TEXT, PAD, WORDS, different, rng

from pretrain.blocks.masks import document_positions, segment_mask
from pretrain.data.samples import Samples
from pretrain.objectives.causal_lm import CausalLM, CausalLMConfig

A, B, C, D, E = range(FIRST_TEXT, FIRST_TEXT + 5)


def sample(text, length=None, document_mask=False):
    objective = CausalLM(CausalLMConfig(), WORDS, length or len(text), document_mask)
    return {name: array.tolist() for name, array in objective.sample(np.array(text, dtype=np.int64), rng()).items()}


def test_each_token_is_predicted_from_those_before_it():
    assert sample([A, B, EOS, C]) == {
        "input_ids": [BOS, A, B, EOS],
        "attention_mask": [1, 1, 1, 1],
        "labels": [A, B, EOS, C],
    }


def test_documents_are_numbered_and_begin_with_bos():
    assert sample([A, B, EOS, C, EOS, D, E], document_mask=True) == {
        "input_ids": [BOS, A, B, BOS, C, BOS, D],
        "attention_mask": [1, 1, 1, 2, 2, 3, 3],
        "labels": [A, B, EOS, C, EOS, D, E],  # the end of a document is predicted from the document alone
    }


def test_a_document_that_ends_with_the_piece_opens_no_other():
    found = sample([A, B, EOS], document_mask=True)
    assert found["attention_mask"] == [1, 1, 1]
    assert found["labels"] == [A, B, EOS]


def test_a_piece_that_begins_with_the_end_of_a_document_has_it_as_document_one():
    found = sample([EOS, A, B], document_mask=True)
    assert found["input_ids"] == [BOS, BOS, A]
    assert found["attention_mask"] == [1, 2, 2]


def test_positions_count_anew_and_nothing_is_seen_across_documents():
    mask = torch.tensor([sample([A, B, EOS, C, EOS, D, E], length=9, document_mask=True)["attention_mask"]])
    assert document_positions(mask)[0, :7].tolist() == [0, 1, 2, 0, 1, 0, 1]
    visible = segment_mask(mask, mask, causal=True)[0, 0, :7]
    assert visible.sum(1).tolist() == [1, 2, 3, 1, 2, 1, 2]


@pytest.mark.parametrize("document_mask", [False, True])
def test_short_texts_are_padded_at_the_end(document_mask):
    assert sample([A, B], length=4, document_mask=document_mask) == {
        "input_ids": [BOS, A, PAD, PAD],
        "attention_mask": [1, 1, 0, 0],
        "labels": [A, B, -100, -100],
    }
    assert sample([], length=3, document_mask=document_mask) == {
        "input_ids": [BOS, PAD, PAD],
        "attention_mask": [1, 0, 0],
        "labels": [-100, -100, -100],
    }


def test_an_epoch_predicts_every_token_once():
    stream = different(1000)
    stream[99::100] = EOS
    objective = CausalLM(CausalLMConfig(), WORDS, 24, document_mask=True)
    samples = Samples(stream, objective, seed=1, split="train", shuffle=True)
    used = len(samples) * 24
    assert 0 <= len(stream) - used < 24  # only what is left over at the end is no target
    for epoch in range(2):
        indices = range(epoch * len(samples), (epoch + 1) * len(samples))
        targets = np.concatenate([samples[index]["labels"] for index in indices])
        assert sorted(targets.tolist()) == sorted(stream[:used].tolist())


def test_what_it_is():
    plain, masked = (CausalLM(CausalLMConfig(), WORDS, 24, document_mask) for document_mask in (False, True))
    assert (plain.segmented, masked.segmented) == (False, True)
    assert (plain.raw_length, plain.source_length, plain.target_length) == (24, 0, 24)
    assert CausalLM.families == {"decoder"}


def test_it_has_no_keys():
    with pytest.raises(ValidationError):
        CausalLMConfig(rate=0.1)
