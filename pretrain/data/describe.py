"""Prepared data in words, for a person who wants to see what the model will see."""

from __future__ import annotations

from collections.abc import Iterator

from pretrain.data.prepare import PreparedData
from pretrain.data.tokenizer import Tokenizer
from pretrain.objectives.cross_entropy import IGNORE_INDEX

SPLITS = ("train", "validation")


def tokenizer_lines(tokenizer: Tokenizer) -> Iterator[str]:
    """Where the tokenizer is and what it holds."""
    special = tokenizer.special
    yield f"tokenizer    {tokenizer.path}"
    yield f"pieces       {tokenizer.vocab_size:,}, {len(special.sentinels)} of them sentinels"
    yield f"special ids  pad {special.pad}, unk {special.unk}, bos {special.bos}, eos {special.eos}"
    yield f"sha256       {tokenizer.fingerprint}"


def data_lines(data: PreparedData) -> Iterator[str]:
    """How large the splits are, and what identifies the data."""
    for split in SPLITS:
        samples = getattr(data, split)
        yield (
            f"{split:<12} {len(samples.tokens):,} tokens, {len(samples):,} samples an epoch of "
            f"{samples.objective.raw_length} tokens: source {samples.objective.source_length}, "
            f"target {samples.objective.target_length}"
        )
    yield f"entropy      {data.unigram_entropy:.4f} nats a token (unigram, validation targets)"
    yield f"fingerprint  {data.fingerprint}"


def sample_lines(data: PreparedData, split: str, index: int) -> Iterator[str]:
    """Text, source and target of one sample, decoded, special pieces by name."""
    samples = getattr(data, split)
    sample = samples[index]
    source = sample["input_ids"][sample["attention_mask"] == 1]
    target = sample["labels"][sample["labels"] != IGNORE_INDEX]
    for name, ids in (("text", samples.text(index)), ("source", source), ("target", target)):
        yield f"=== {split} sample {index}: {name}, {len(ids)} tokens"
        yield data.tokenizer.show(ids)
