"""Masked language modelling against BERT's description: rates, shares, whole words, documents."""

import numpy as np
import pytest
from pydantic import ValidationError
from tokens_by_hand import (
    BOS,
    EOS,
    FIRST_TEXT,
    MASK,
    PAD,
    SPECIAL,
    TEXT_IDS,
    UNK,
    WORDS,
    different,
    make_tokens,
    rng,
    spread,
    text_of,
)

from pretrain.errors import ConfigError
from pretrain.objectives.masked_lm import MaskedLM, MaskedLMConfig

WORD_TEXTS = ["un", "believ", "able", " cat", "s", " sat", ".", " on", "low"]
BY_NAME = {text: FIRST_TEXT + index for index, text in enumerate(WORD_TEXTS)}


def objective(length=64, document_mask=False, tokens=WORDS, **keys):
    return MaskedLM(MaskedLMConfig(**keys), tokens, length, document_mask)


def named(*texts):
    return np.array([EOS if text == "eos" else BY_NAME[text] for text in texts])


def chosen(sample):
    return np.flatnonzero(sample["labels"] != -100)


def test_what_is_predicted_is_the_text_and_the_rest_is_left_alone():
    lm, text = objective(), text_of(62)
    for seed in range(20):
        sample = lm.sample(text, rng(seed))
        whole = np.array([BOS, *text, EOS])
        places = chosen(sample)
        assert (sample["labels"][places] == whole[places]).all()
        rest = np.setdiff1d(np.arange(64), places)
        assert (sample["input_ids"][rest] == whole[rest]).all()
        assert sample["attention_mask"].tolist() == [1] * 64


@pytest.mark.parametrize(("rate", "length", "wanted"), [(0.15, 62, 9), (0.15, 3, 1), (0.4, 62, 25), (0.99, 62, 61)])
def test_the_number_of_predicted_tokens_is_exact(rate, length, wanted):
    lm = objective(rate=rate)
    assert {len(chosen(lm.sample(text_of(length), rng(seed)))) for seed in range(20)} == {wanted}


def test_only_pieces_of_text_are_chosen_and_counted():
    lm, text = objective(rate=0.5), text_of(62)
    text[10:50] = [EOS, UNK] * 20
    counts = np.zeros(64)
    for seed in range(200):
        counts[chosen(lm.sample(text, rng(seed)))] += 1
    assert counts[11:51].sum() == counts[0] == counts[-1] == 0
    assert counts.sum() == 200 * 11


def test_every_place_is_chosen_alike():
    lm, text, draws = objective(rate=0.25), text_of(62), 4000
    counts = np.zeros(64)
    for seed in range(draws):
        counts[chosen(lm.sample(text, rng(seed)))] += 1
    p = 16 / 62
    assert np.abs(counts[1:-1] - draws * p).max() < spread(draws, p)


def test_eighty_ten_ten():
    lm, text = objective(512), text_of(510)
    masked = changed = same = 0
    for seed in range(400):
        sample = lm.sample(text, rng(seed))
        places = chosen(sample)
        seen, wanted = sample["input_ids"][places], sample["labels"][places]
        masked += int((seen == MASK).sum())
        same += int((seen == wanted).sum())
        changed += int(((seen != MASK) & (seen != wanted)).sum())
    draws = masked + changed + same
    assert draws == 400 * 76
    by_chance = 0.1 / len(TEXT_IDS)  # a random piece that happens to be the one that stood there
    for count, p in ((masked, 0.8), (changed, 0.1 - by_chance), (same, 0.1 + by_chance)):
        assert abs(count - draws * p) < spread(draws, p)


def test_shares_are_keys():
    text = text_of(62)
    for keys, wanted in [
        ({"mask_share": 1, "random_share": 0}, lambda seen, labels: (seen == MASK).all()),
        ({"mask_share": 0, "random_share": 0}, lambda seen, labels: (seen == labels).all()),
        ({"mask_share": 0, "random_share": 1}, lambda seen, labels: (seen != labels).mean() > 0.9),
    ]:
        sample = objective(rate=0.5, **keys).sample(text, rng())
        places = chosen(sample)
        assert wanted(sample["input_ids"][places], sample["labels"][places])


def test_random_pieces_are_text_and_all_alike():
    tokens = make_tokens(["a", "b", "c"])
    pieces = range(FIRST_TEXT - 256, FIRST_TEXT + 3)  # byte pieces stand for text too
    lm = objective(512, tokens=tokens, rate=0.9, mask_share=0, random_share=1)
    seen = []
    for seed in range(60):
        sample = lm.sample(np.full(510, FIRST_TEXT), rng(seed))
        seen.append(sample["input_ids"][chosen(sample)])
    drawn = np.concatenate(seen)
    assert not SPECIAL & set(drawn.tolist())
    counts = np.bincount(drawn, minlength=FIRST_TEXT + 3)[pieces]
    assert counts.sum() == len(drawn)
    assert np.abs(counts - len(drawn) / 259).max() < spread(len(drawn), 1 / 259)


def words_of(text, *sizes):
    ends = np.cumsum(sizes)
    return [set(range(1 + end - size, 1 + end)) for end, size in zip(ends, sizes, strict=True)]  # 1: bos


def test_whole_words_are_never_split_and_fill_the_budget():
    tokens = make_tokens(WORD_TEXTS)
    text = named("un", "believ", "able", " cat", "s", " sat", " on", "low", "low", "low", ".", " cat", "able", "un")
    words = words_of(text, 3, 2, 1, 4, 1, 3)
    lm = objective(16, tokens=tokens, whole_word=True, rate=0.45)
    budget = round(0.45 * 14)
    assert budget == 6
    reached = 0
    for seed in range(300):
        places = set(chosen(lm.sample(text, rng(seed))).tolist())
        left_out = [word for word in words if not word & places]
        assert set().union(*(word for word in words if word <= places)) == places
        assert len(places) <= budget
        assert all(len(word) > budget - len(places) for word in left_out)  # no word that was left out would fit
        reached += len(places) == budget
    assert reached > 200


def test_words_of_one_size_are_chosen_alike():
    tokens, draws = make_tokens(WORD_TEXTS), 3000
    text = named(*[" cat", "s", " on", "low", " sat", "able"] * 5)  # 15 words of two tokens
    lm = objective(32, tokens=tokens, whole_word=True, rate=0.2)
    counts = np.zeros(32)
    for seed in range(draws):
        counts[chosen(lm.sample(text, rng(seed)))] += 1
    assert (counts[1:-1:2] == counts[2:-1:2]).all()
    assert np.abs(counts[1:-1] - draws * 0.2).max() < spread(draws, 0.2)


def test_parts_of_a_word_are_replaced_each_by_itself():
    tokens = make_tokens(WORD_TEXTS)
    lm = objective(5, tokens=tokens, whole_word=True, rate=0.99, mask_share=0.5, random_share=0)
    kinds = {tuple(lm.sample(named("un", "believ", "able"), rng(s))["input_ids"][1:4] == MASK) for s in range(100)}
    assert len(kinds) == 8


def test_words_longer_than_the_budget_are_left_alone():
    tokens = make_tokens(WORD_TEXTS)
    lm = objective(8, tokens=tokens, whole_word=True)
    assert len(chosen(lm.sample(named("un", "believ", "able"), rng()))) == 0
    for seed in range(20):  # one of six tokens: only the single-token word fits
        places = chosen(lm.sample(named("un", "believ", "able", " sat", " cat", "s"), rng(seed)))
        assert places.tolist() == [4]


def test_a_word_ends_where_a_document_ends():
    tokens = make_tokens(WORD_TEXTS)
    lm = objective(9, tokens=tokens, whole_word=True, rate=0.5)  # 3 of 6 tokens
    sets = {tuple(chosen(lm.sample(named("un", "able", "s", "eos", "low", "s", "able"), rng(s)))) for s in range(40)}
    assert sets == {(1, 2, 3), (5, 6, 7)}


def test_documents_are_numbered_and_begin_with_bos():
    a = different(6).tolist()
    lm = objective(12, document_mask=True, mask_share=0, random_share=0)
    sample = lm.sample(np.array([*a[:2], EOS, *a[2:5], EOS, a[5]]), rng())
    assert sample["input_ids"].tolist() == [BOS, *a[:2], BOS, *a[2:5], BOS, a[5], EOS, PAD, PAD]
    assert sample["attention_mask"].tolist() == [1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 0, 0]
    assert lm.segmented


def test_a_document_that_ends_with_the_piece_opens_no_other():
    a = different(2).tolist()
    sample = objective(5, document_mask=True, mask_share=0, random_share=0).sample(np.array([*a, EOS]), rng())
    assert sample["input_ids"].tolist() == [BOS, *a, EOS, EOS]
    assert sample["attention_mask"].tolist() == [1] * 5


def test_short_texts_are_padded_after_the_end_mark():
    lm = objective(6, mask_share=1, random_share=0)
    sample = lm.sample(text_of(1), rng())
    assert sample["input_ids"].tolist() == [BOS, MASK, EOS, PAD, PAD, PAD]
    assert sample["attention_mask"].tolist() == [1, 1, 1, 0, 0, 0]
    assert sample["labels"].tolist() == [-100, text_of(1)[0], -100, -100, -100, -100]
    nothing = lm.sample(text_of(0), rng())
    assert nothing["input_ids"].tolist() == [BOS, EOS, PAD, PAD, PAD, PAD]
    assert nothing["attention_mask"].tolist() == [1, 1, 0, 0, 0, 0]
    assert (nothing["labels"] == -100).all()


def test_wrong_settings_are_one_line():
    with pytest.raises(ConfigError, match=r"^data\.tokenizer: it has no <mask> piece, .*kind=masked_lm.*--mask.*$"):
        objective(tokens=make_tokens([], mask=None))
    with pytest.raises(
        ConfigError, match=r"^objective\.random_share = 0\.3 .* set objective\.random_share to 0\.2 .*$"
    ):
        objective(random_share=0.3)
    with pytest.raises(ConfigError, match=r"^data\.sequence_length: 2 is too short .*$"):
        objective(2)


@pytest.mark.parametrize("keys", [{"rate": 0}, {"rate": 1}, {"mask_share": 1.1}, {"random_share": -0.1}, {"words": 1}])
def test_wrong_keys_are_refused(keys):
    with pytest.raises(ValidationError):
        MaskedLMConfig(**keys)
