"""Prepared data in words, for a person who wants to see what the model will see."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pretrain.data.prepare import PreparedData
from pretrain.data.tokenizer import Tokenizer
from pretrain.objectives.arrays import runs
from pretrain.objectives.cross_entropy import IGNORE_INDEX

SPLITS = ("train", "validation")


def tokenizer_lines(tokenizer: Tokenizer) -> Iterator[str]:
    """Where the tokenizer is and what it holds."""
    special = tokenizer.special
    mask = "" if special.mask is None else f", mask {special.mask}"
    yield f"tokenizer    {tokenizer.path}"
    yield f"pieces       {tokenizer.vocab_size:,}, {len(special.sentinels)} of them sentinels"
    yield f"special ids  pad {special.pad}, unk {special.unk}, bos {special.bos}, eos {special.eos}{mask}"
    yield f"sha256       {tokenizer.fingerprint}"


def data_lines(data: PreparedData) -> Iterator[str]:
    """How large the splits are, and what identifies the data."""
    lengths = {"source": data.objective.source_length, "target": data.objective.target_length}
    shown = ", ".join(f"{name} {length}" for name, length in lengths.items() if length)
    for split in SPLITS:
        samples = getattr(data, split)
        yield (
            f"{split:<12} {len(samples.tokens):,} tokens, {len(samples):,} samples an epoch of {samples.contents}: "
            f"{shown}"
        )
        if samples.left_out:
            yield f"{'':<12} left out: {samples.left_out}"
    yield f"entropy      {data.unigram_entropy:.4f} nats a token (unigram, validation targets)"
    yield f"fingerprint  {data.fingerprint}"


def sample_lines(data: PreparedData, split: str, index: int) -> Iterator[str]:
    """Text, input and labels of one sample, decoded, special pieces by name.

    Of an encoder-decoder the input is called source and the labels target. Documents that are told apart, and their
    prefixes, are shown one after the other; single predicted tokens of an encoder each with what stands in their place.
    """
    samples, show = getattr(data, split), data.tokenizer.show
    sample, text = samples[index], samples.text(index)
    ids, mask, labels = sample["input_ids"], sample["attention_mask"], sample["labels"]
    two_stacks = "decoder_input_ids" in sample
    head = f"=== {split} sample {index}: "
    yield f"{head}text, {len(text)} tokens"
    yield show(text)
    yield f"{head}{'source' if two_stacks else 'input'}, {np.count_nonzero(mask)} tokens"
    yield from _documents(ids, mask, data.tokenizer)
    yield f"{head}{'target' if two_stacks else 'labels'}, {np.count_nonzero(labels != IGNORE_INDEX)} tokens"
    if two_stacks:
        yield from _documents(labels, sample.get("decoder_attention_mask", labels != IGNORE_INDEX), data.tokenizer)
    elif data.objective.target_length:
        yield from _targets(labels, data.tokenizer)
    else:
        yield from _replaced(ids, labels, data.tokenizer)


def _documents(ids: np.ndarray, mask: np.ndarray, tokenizer: Tokenizer) -> Iterator[str]:
    """The tokens that are no padding, each document and each prefix under a line of its own if there are several."""
    parts = [(int(mask[start]), ids[start:end]) for start, end in runs(mask) if mask[start]]
    for number, part in parts:
        if len(parts) > 1 or number < 0:
            yield f"--- document {abs(number)}{', its prefix' if number < 0 else ''}, {len(part)} tokens"
        yield tokenizer.show(part)


def _targets(labels: np.ndarray, tokenizer: Tokenizer) -> Iterator[str]:
    """Consecutive labels, with their positions where some have none."""
    parts = [(start, end) for start, end in runs(labels != IGNORE_INDEX) if labels[start] != IGNORE_INDEX]
    for start, end in parts:
        if len(parts) > 1 or start:
            yield f"--- positions {start} to {end - 1}"
        yield tokenizer.show(labels[start:end])


def _replaced(ids: np.ndarray, labels: np.ndarray, tokenizer: Tokenizer) -> Iterator[str]:
    """Position, what stands there, and the label, a line for each label."""
    for position in np.flatnonzero(labels != IGNORE_INDEX).tolist():
        seen, wanted = (tokenizer.show(values[position : position + 1]) for values in (ids, labels))
        yield f"{position:>6} {seen!r} was {wanted!r}"
