"""Prefix language modelling: what is seen, what is predicted, how long prefixes are."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tokens_by_hand import BOS, EOS, PAD, WORDS, different, rng, spread

from pretrain.blocks.masks import segment_mask
from pretrain.errors import ConfigError
from pretrain.objectives.prefix_lm import PrefixLM, PrefixLMConfig


def objective(length, document_mask=False, **keys):
    return PrefixLM(PrefixLMConfig(**keys), WORDS, length, document_mask)


def prefix_length(sample):
    """Tokens of the only document's prefix: the negative positions but the one of bos."""
    return int((sample["attention_mask"] < 0).sum()) - 1


def visible(sample):
    mask = torch.from_numpy(sample["attention_mask"])[None]
    return segment_mask(mask, mask, causal=True)[0, 0].numpy()


@pytest.mark.parametrize("length", [1, 2, 3, 17, 64])
def test_the_prefix_is_seen_by_all_and_the_rest_is_predicted(length):
    lm, text = objective(length), different(length)
    for seed in range(30):
        sample = lm.sample(text, rng(seed))
        q = prefix_length(sample)
        assert sample["input_ids"].tolist() == [BOS, *text[:-1]]
        assert sample["attention_mask"].tolist() == [-1] * (q + 1) + [1] * (length - q - 1)
        assert sample["labels"].tolist() == [-100] * q + text[q:].tolist()
        seen = visible(sample)
        assert seen[:, : q + 1].all()
        labelled = np.flatnonzero(sample["labels"] != -100)
        assert all(not seen[i, i + 1 :].any() for i in labelled)  # no label is seen where it is predicted
        assert len(labelled) >= 1


def test_prefix_lengths_are_uniform():
    lm, text, draws = objective(10), different(10), 10_000
    lengths = [prefix_length(lm.sample(text, rng(seed))) for seed in range(draws)]
    counts = np.bincount(lengths, minlength=10)
    assert len(counts) == 10  # 0 to 9: the last token is always predicted
    assert np.abs(counts - draws / 10).max() < spread(draws, 0.1)


def test_shares_bound_the_prefix():
    lm, text, draws = objective(40, min_prefix_share=0.25, max_prefix_share=0.75), different(40), 8_000
    counts = np.bincount([prefix_length(lm.sample(text, rng(seed))) for seed in range(draws)], minlength=31)
    assert counts[:10].sum() == 0
    assert len(counts) == 31
    assert np.abs(counts[10:] - draws / 21).max() < spread(draws, 1 / 21)


@pytest.mark.parametrize(("share", "wanted"), [(0.0, 0), (0.5, 20), (1.0, 39)])
def test_equal_shares_fix_the_prefix(share, wanted):
    lm = objective(40, min_prefix_share=share, max_prefix_share=share)
    assert {prefix_length(lm.sample(different(40), rng(seed))) for seed in range(20)} == {wanted}


def test_without_a_prefix_it_is_causal():
    sample = objective(6, max_prefix_share=0).sample(different(6), rng())
    assert (visible(sample) == np.tril(np.ones((6, 6), dtype=bool))).all()
    assert (sample["labels"] == different(6)).all()


def test_every_document_has_a_prefix_of_its_own():
    lm = objective(12, document_mask=True, min_prefix_share=0.5, max_prefix_share=0.5)
    a = different(9).tolist()
    text = np.array([*a[:3], EOS, *a[3:8], EOS, a[8], EOS])  # documents of 4, 6 and 2 tokens with their ends
    sample = lm.sample(text, rng())
    assert sample["input_ids"].tolist() == [BOS, *a[:3], BOS, *a[3:8], BOS, a[8]]
    assert sample["attention_mask"].tolist() == [-1, -1, -1, 1, -2, -2, -2, -2, 2, 2, -3, -3]
    assert sample["labels"].tolist() == [-100, -100, a[2], EOS, -100, -100, -100, a[6], a[7], EOS, -100, EOS]


def test_prefixes_of_documents_are_drawn_apart():
    lm = objective(40, document_mask=True)
    text = np.concatenate([different(19), [EOS], different(20)])
    pairs = set()
    for seed in range(60):
        mask = lm.sample(text, rng(seed))["attention_mask"]
        pairs.add(((mask == -1).sum(), (mask == -2).sum()))
    assert len(pairs) > 40


def test_without_document_mask_the_whole_piece_is_one_document():
    text = np.concatenate([different(5), [EOS], different(6)])
    sample = objective(12).sample(text, rng())
    assert set(np.abs(sample["attention_mask"]).tolist()) == {1}
    assert (sample["input_ids"][1:] == text[:-1]).all()


def test_short_texts_are_padded_at_the_end():
    lm = objective(5, min_prefix_share=0.5, max_prefix_share=0.5)
    sample = lm.sample(different(2), rng())
    assert sample["input_ids"].tolist() == [BOS, different(1)[0], PAD, PAD, PAD]
    assert sample["attention_mask"].tolist() == [-1, -1, 0, 0, 0]
    assert sample["labels"].tolist() == [-100, different(2)[1], -100, -100, -100]
    nothing = lm.sample(different(0), rng())
    assert nothing["input_ids"].tolist() == [BOS, PAD, PAD, PAD, PAD]
    assert nothing["attention_mask"].tolist() == [-1, 0, 0, 0, 0]
    assert (nothing["labels"] == -100).all()


def test_shares_in_the_wrong_order_are_one_line():
    with pytest.raises(
        ConfigError, match=r"^objective\.min_prefix_share = 0\.8 is above .*max_prefix_share = 0\.5;.*$"
    ):
        objective(16, min_prefix_share=0.8, max_prefix_share=0.5)


@pytest.mark.parametrize("keys", [{"min_prefix_share": -0.1}, {"max_prefix_share": 1.1}, {"share": 0.5}])
def test_wrong_keys_are_refused(keys):
    with pytest.raises(ValidationError):
        PrefixLMConfig(**keys)
