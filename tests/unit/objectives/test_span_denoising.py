"""Span denoising against T5's description: counts, statistics, and nothing of the text lost."""

import numpy as np
import pytest
from pydantic import ValidationError

from pretrain.errors import ConfigError
from pretrain.objectives.span_denoising import SpanDenoising, SpanDenoisingConfig, random_segmentation
from pretrain.objectives.tokens import SpecialTokens

TOKENS = SpecialTokens(pad=0, unk=1, bos=2, eos=3, sentinels=tuple(range(4, 104)))
FIRST_TEXT_ID = 104


def objective(source_length=128, tokens=TOKENS, **keys):
    return SpanDenoising(SpanDenoisingConfig(**keys), tokens, source_length)


def text(length, seed=0):
    return np.random.default_rng(seed).integers(FIRST_TEXT_ID, 4096, length)


def rng(seed=0):
    return np.random.default_rng(seed)


def restore(sample):
    """The text, put together again from source and target only."""
    source = sample["input_ids"][sample["attention_mask"] == 1].tolist()
    target = sample["labels"][sample["labels"] != -100].tolist()
    assert source.pop() == TOKENS.eos
    assert target.pop() == TOKENS.eos
    spans, current = {}, None
    for token in target:
        if token in TOKENS.sentinels:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    return [piece for token in source for piece in spans.get(token, [token])]


def test_lengths_are_those_of_t5():
    t5 = objective(512)
    assert (t5.raw_length, t5.target_length) == (568, 114)


@pytest.mark.parametrize("source_length", [3, 4, 5, 7, 16, 33, 128, 129, 512])
def test_a_full_piece_fills_the_source_exactly(source_length):
    noiser = objective(source_length)
    sample = noiser.sample(text(noiser.raw_length), rng())
    assert sample["input_ids"].shape == sample["attention_mask"].shape == (source_length,)
    assert sample["attention_mask"].all()
    assert sample["labels"].shape == sample["decoder_input_ids"].shape == (noiser.target_length,)
    assert (sample["labels"] != -100).all()
    assert all(array.dtype == np.int64 for array in sample.values())


@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.5, 1.0), (0.9, 1.0), (0.05, 10.0), (0.95, 3.0)])
def test_text_is_restored_from_source_and_target_at_every_length(density, mean):
    noiser = objective(64, noise_density=density, mean_span_length=mean)
    for length in range(noiser.raw_length + 1):
        piece = text(length, seed=length)
        sample = noiser.sample(piece, rng(length))
        assert restore(sample) == piece.tolist()
        assert (sample["input_ids"][sample["attention_mask"] == 0] == TOKENS.pad).all()


def test_sentinels_are_in_order_and_the_decoder_sees_the_shifted_labels():
    noiser = objective(512)
    sample = noiser.sample(text(noiser.raw_length), rng())
    used = [token for token in sample["input_ids"].tolist() if token in TOKENS.sentinels]
    assert used == list(TOKENS.sentinels[: len(used)])
    assert [token for token in sample["labels"].tolist() if token in TOKENS.sentinels] == used
    assert sample["labels"][0] == TOKENS.sentinels[0]
    assert sample["labels"][-1] == TOKENS.eos
    assert sample["decoder_input_ids"][0] == TOKENS.bos
    assert (sample["decoder_input_ids"][1:] == sample["labels"][:-1]).all()
    assert sample["input_ids"][0] >= FIRST_TEXT_ID  # as in T5, the text starts with what is kept


def test_rate_and_mean_span_length_are_those_asked_for():
    noiser = objective(512, noise_density=0.2, mean_span_length=4.0)
    sample = noiser.sample(text(noiser.raw_length), rng())
    spans = sum(token in TOKENS.sentinels for token in sample["labels"].tolist())
    removed = noiser.target_length - spans - 1
    assert removed / noiser.raw_length == pytest.approx(0.2, abs=0.001)
    assert removed / spans == pytest.approx(4.0, abs=0.1)


def t5_mask(length, noise, spans, generator):
    """Which tokens are removed, written another way: shuffled marks of segment starts, then alternating segments."""

    def segments(items):
        starts = np.concatenate([[1], generator.permutation([1] * (spans - 1) + [0] * (items - spans))])
        return np.bincount(np.cumsum(starts) - 1)

    kept, removed = segments(length - noise), segments(noise)
    return np.repeat(np.tile([0, 1], spans), np.stack([kept, removed], axis=1).reshape(-1))


def test_removed_places_are_distributed_as_in_t5():
    noiser, draws = objective(128), 3000
    removed, wanted = np.zeros(noiser.raw_length), np.zeros(noiser.raw_length)
    piece = np.arange(FIRST_TEXT_ID, FIRST_TEXT_ID + noiser.raw_length)
    reference = rng(99)
    for seed in range(draws):
        labels = noiser.sample(piece, rng(seed))["labels"]
        removed[labels[labels >= FIRST_TEXT_ID] - FIRST_TEXT_ID] += 1
        wanted += t5_mask(noiser.raw_length, 21, 7, reference)
    assert removed[0] == 0  # T5's text starts with kept tokens and ends with removed ones
    assert removed[-1] == draws
    assert removed.sum() == 21 * draws
    spread = np.sqrt(2 * draws * 0.15 * 0.85)
    assert np.abs(removed - wanted).max() < 5 * spread
    assert np.abs(removed[40:100].mean() - wanted[40:100].mean()) < spread


def test_segmentation_is_uniform_over_all_cuts():
    counts = {}
    generator = rng(7)
    for _ in range(6000):
        cut = tuple(random_segmentation(5, 3, generator).tolist())
        counts[cut] = counts.get(cut, 0) + 1
    assert len(counts) == 6  # 5 = a + b + c with each at least 1
    assert all(sum(cut) == 5 and min(cut) >= 1 for cut in counts)
    assert max(abs(count - 1000) for count in counts.values()) < 5 * np.sqrt(1000)


def test_a_sample_is_a_function_of_text_and_generator_only():
    noiser, piece = objective(), text(141)
    kept = piece.copy()
    first, again, other = (noiser.sample(piece, rng(seed)) for seed in (1, 1, 2))
    assert all((first[name] == again[name]).all() for name in first)
    assert (first["input_ids"] != other["input_ids"]).any()
    assert (piece == kept).all()


def test_too_few_sentinels_name_the_key():
    with pytest.raises(ConfigError, match=r"^objective\.sentinels: 20 .*objective\.sentinels=28"):
        objective(512, sentinels=20)
    few = SpecialTokens(0, 1, 2, 3, tuple(range(4, 14)))
    with pytest.raises(ConfigError, match=r"^data\.tokenizer: it has 10 sentinels"):
        objective(512, tokens=few)


def test_too_short_a_source_names_the_key():
    with pytest.raises(ConfigError, match=r"^data\.sequence_length: 2 "):
        objective(2)


@pytest.mark.parametrize("keys", [{"noise_density": 0}, {"noise_density": 1}, {"mean_span_length": 0.5}, {"spans": 3}])
def test_wrong_keys_are_refused(keys):
    with pytest.raises(ValidationError):
        SpanDenoisingConfig(**keys)
