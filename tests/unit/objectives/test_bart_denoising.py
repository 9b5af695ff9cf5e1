"""BART's denoising against its description: span lengths, infilling, permutation, and nothing of the text lost."""

import itertools
from math import exp, factorial

import numpy as np
import pytest
from pydantic import ValidationError
from tokens_by_hand import BOS, EOS, FIRST_TEXT, MASK, PAD, WORDS, different, make_tokens, rng, spread

from pretrain.errors import ConfigError
from pretrain.objectives.bart_denoising import BartDenoising, BartDenoisingConfig, shuffled_places, span_lengths

SENTENCES = make_tokens([f"word{number}" for number in range(20)] + ["\n"])
LINE_END = FIRST_TEXT + 20


def objective(length=128, tokens=WORDS, **keys):
    return BartDenoising(BartDenoisingConfig(**keys), tokens, length)


def source_of(sample):
    source = sample["input_ids"][sample["attention_mask"] == 1].tolist()
    assert source.pop() == EOS
    assert (sample["input_ids"][sample["attention_mask"] == 0] == PAD).all()
    return source


def lines(*lengths):
    """Lines of `lengths` tokens each, the line end included; all other tokens differ."""
    words = iter(range(FIRST_TEXT, LINE_END))
    return [[*itertools.islice(words, length - 1), LINE_END] for length in lengths]


def test_the_target_is_the_text():
    noiser = objective(64)
    assert (noiser.raw_length, noiser.source_length, noiser.target_length) == (63, 64, 64)
    sample = noiser.sample(different(63), rng())
    assert sample["labels"].tolist() == [*different(63), EOS]
    assert sample["decoder_input_ids"].tolist() == [BOS, *different(63)]


@pytest.mark.parametrize(("rate", "mean"), [(0.3, 3.0), (0.3, 1.0), (0.95, 1.0), (0.95, 10.0), (0.01, 3.0)])
def test_the_removed_number_is_exact_and_all_fits_at_every_length(rate, mean):
    noiser = objective(64, rate=rate, mean_span_length=mean, permute_share=0)
    for length in range(64):
        text = different(length)
        source = source_of(noiser.sample(text, rng(length)))
        kept = [token for token in source if token != MASK]
        assert len(kept) == length - round(rate * length)
        assert kept == sorted(kept)  # in the order of the text
        assert set(kept) <= set(text.tolist())
        assert len(source) <= length
        assert (MASK in source) == (round(rate * length) > 0)


def test_span_lengths_are_poisson():
    total, mean = 120_000, 3.0
    lengths = span_lengths(total, mean, rng(1))
    assert lengths.sum() == total
    draws = len(lengths)
    # The sum of n draws has variance n * mean, so the number of draws that a sum needs spreads by sqrt(n / mean).
    assert abs(draws - total / mean) < 5 * np.sqrt(draws / mean)
    counts = np.bincount(lengths, minlength=12)
    for length in range(12):
        p = exp(-mean) * mean**length / factorial(length)
        assert abs(counts[length] - draws * p) < spread(draws, p) + 1  # one span is cut to make the sum exact


def test_masks_in_a_sample_are_as_many_as_spans_are_drawn():
    noiser, draws, budget = objective(128, permute_share=0), 2000, 38
    reference = rng(99)

    def spans():
        total = count = 0
        while total < budget:
            total += reference.poisson(3.0)
            count += 1
        return count

    found = [source_of(noiser.sample(different(127), rng(seed))).count(MASK) for seed in range(draws)]
    wanted = [spans() for _ in range(draws)]
    error = np.sqrt((np.var(found) + np.var(wanted)) / draws)
    assert abs(np.mean(found) - np.mean(wanted)) < 5 * error
    assert np.std(found) == pytest.approx(np.std(wanted), rel=5 / np.sqrt(draws))  # se of a std: 1 / sqrt(2 draws)


def test_spans_never_outnumber_removed_tokens():
    met = 0
    for seed in range(300):
        lengths = span_lengths(10, 1.0, rng(seed))
        assert lengths.sum() == 10
        assert len(lengths) <= 10
        met += len(lengths) == 10 and (lengths == 0).any()
    assert met > 20  # the limit was needed
    assert span_lengths(0, 3.0, rng()).tolist() == []


def test_spans_of_no_token_insert_a_mask():
    noiser = objective(64, permute_share=0)
    inserted = 0
    for seed in range(200):
        source = source_of(noiser.sample(different(63), rng(seed)))
        between = [(a, b) for a, mask, b in zip(source, source[1:], source[2:], strict=False) if mask == MASK]
        inserted += sum(b == a + 1 and a != MASK for a, b in between)
    spans = 200 * (19 / 3)
    assert 0.5 * exp(-3) < inserted / spans < 1.5 * exp(-3)  # less those at an end or beside another mask


def test_spans_lie_anywhere():
    noiser = objective(5, rate=0.5, mean_span_length=50, permute_share=0)  # one span of two of four tokens
    text, draws = different(4), 3000
    sources = [tuple(source_of(noiser.sample(text, rng(seed)))) for seed in range(draws)]
    wanted = {(MASK, *text[2:]), (text[0], MASK, text[3]), (*text[:2], MASK)}
    assert set(sources) == wanted
    assert max(abs(sources.count(source) - draws / 3) for source in wanted) < spread(draws, 1 / 3)


def test_sentences_are_permuted_and_all_orders_are_alike():
    noiser, draws = objective(32, tokens=SENTENCES, rate=0), 6000
    parts = lines(2, 4, 3)
    text = np.array([token for part in parts for token in part])
    counts = {}
    for seed in range(draws):
        sample = noiser.sample(text, rng(seed))
        assert sample["labels"][: len(text)].tolist() == text.tolist()  # the original order is restored
        source = tuple(source_of(sample))
        counts[source] = counts.get(source, 0) + 1
    orders = {tuple(token for part in order for token in part) for order in itertools.permutations(parts)}
    assert set(counts) == orders
    assert max(abs(count - draws / 6) for count in counts.values()) < spread(draws, 1 / 6)


def test_sentences_stay_in_their_document():
    noiser = objective(32, tokens=SENTENCES, rate=0)
    a, b, c, d, rest = lines(2, 3, 2, 4, 5)
    text = np.array([*a, *b, EOS, EOS, *c, *d, EOS, *rest[:-1]])
    moved = 0
    for seed in range(20):
        source = source_of(noiser.sample(text, rng(seed)))
        assert [place for place, token in enumerate(source) if token == EOS] == [5, 6, 13]
        assert source[:5] in ([*a, *b], [*b, *a])
        assert source[7:13] in ([*c, *d], [*d, *c])
        assert source[14:] == rest[:-1]
        moved += source != text.tolist()
    assert moved > 5


def test_a_share_of_the_sentences_can_stay():
    draws = 4000
    orders = np.stack([shuffled_places(4, 0.5, rng(seed)) for seed in range(draws)])
    assert (np.sort(orders, axis=1) == np.arange(4)).all()
    moved = (orders != np.arange(4)).sum(1)
    assert set(moved.tolist()) == {0, 2}  # two are chosen, and half the time they keep their places
    assert abs((moved == 2).sum() - draws / 2) < spread(draws, 0.5)
    assert (shuffled_places(9, 0.0, rng()) == np.arange(9)).all()


def test_spans_are_taken_from_the_permuted_text():
    noiser = objective(16, tokens=SENTENCES, rate=0.53, mean_span_length=50)  # one span of 8 of the 15 tokens
    first, second = lines(7, 8)
    text = np.array([*first, *second])
    found = {tuple(source_of(noiser.sample(text, rng(seed)))) for seed in range(600)}
    orders = ([*first, *second], [*second, *first])
    assert found == {(*order[:start], MASK, *order[start + 8 :]) for order in orders for start in range(8)}


def test_short_texts_are_padded_after_the_end_mark():
    sample = objective(6).sample(different(1), rng())
    assert sample["input_ids"].tolist() == [different(1)[0], EOS, PAD, PAD, PAD, PAD]
    assert sample["labels"].tolist() == [different(1)[0], EOS, -100, -100, -100, -100]
    nothing = objective(3).sample(different(0), rng())
    assert nothing["input_ids"].tolist() == [EOS, PAD, PAD]
    assert nothing["attention_mask"].tolist() == [1, 0, 0]
    assert nothing["decoder_input_ids"].tolist() == [BOS, PAD, PAD]
    assert nothing["labels"].tolist() == [EOS, -100, -100]


def test_wrong_settings_are_one_line():
    with pytest.raises(ConfigError, match=r"^data\.tokenizer: it has no <mask> piece, .*kind=bart_denoising.*$"):
        objective(tokens=make_tokens([], mask=None))
    with pytest.raises(ConfigError, match=r"^data\.sequence_length: 1 is too short .*$"):
        objective(1)
    with pytest.raises(ConfigError) as error:
        objective(rate=0, permute_share=0)
    assert str(error.value) == (
        "objective.rate = 0.0 and objective.permute_share = 0.0 leave the text as it is, and copying it is nothing to "
        "learn; set one of them above 0"
    )
    assert source_of(objective(rate=0, permute_share=0.5).sample(different(60), rng()))  # one is enough


@pytest.mark.parametrize("keys", [{"rate": 1}, {"mean_span_length": 0.5}, {"permute_share": 2}, {"poisson": 3}])
def test_wrong_keys_are_refused(keys):
    with pytest.raises(ValidationError):
        BartDenoisingConfig(**keys)
