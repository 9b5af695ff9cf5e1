"""BART's denoising (Lewis et al. 2020, arXiv 1910.13461, section 2.2): sentence permutation, then text infilling.

Source: the text with its sentences in another order and spans of it replaced by one mask piece each, then eos. Target:
the original text, then eos.

A *sentence* is told at the level of tokens by `objectives.pieces`: a line, or what ends with a full stop, exclamation
or question mark before a space. Sentences change places within their document only; its eos stays where it is.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from pretrain.errors import ConfigError
from pretrain.objectives.arrays import padded
from pretrain.objectives.cross_entropy import IGNORE_INDEX
from pretrain.objectives.registry import OBJECTIVES
from pretrain.objectives.tokens import SpecialTokens
from pretrain.registry import Section


class BartDenoisingConfig(Section):
    """BART's denoising: restore a text from its shuffled sentences with spans masked."""

    mask_piece: ClassVar[bool] = True

    kind: Literal["bart_denoising"] = "bart_denoising"
    """Restore the whole text from shuffled sentences in which masks replace spans."""
    rate: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Share of the text's tokens that masks replace."""
    mean_span_length: Annotated[float, Field(ge=1)] = 3.0
    """Mean of the Poisson distribution of span lengths in tokens; a span of length 0 inserts a mask."""
    permute_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of a document's sentences that are shuffled among each other."""


@OBJECTIVES.register(BartDenoisingConfig)
class BartDenoising:
    """Turns a piece of text into a noised source and itself as target.

    Of n tokens round(rate * n) are removed, exactly. Span lengths are drawn until they sum up to that number, the last
    one is cut to it; the spans lie anywhere, all arrangements of masks and kept tokens being equally likely. Inserted
    masks lengthen the source, so there are never more spans, inserted ones included, than removed tokens: the source
    is at most as long as the text, and no text is ever cut off. (At mean 3 and 128 tokens the limit is met less than
    once in 10^15 samples.)

    Args:
        config: rates; see `BartDenoisingConfig`.
        tokens: special ids and pieces of the tokenizer.
        sequence_length: S, tokens of the encoder's input, eos included.
        document_mask: must be False; a span may reach over the end of a document.

    Attributes:
        raw_length: S - 1.
        target_length: T = S, tokens of the decoder's input and of the labels, eos included.

    Raises:
        ConfigError: no mask piece, no noise, or a length without room for text.
    """

    families = frozenset({"encoder_decoder"})
    maskable = False
    segmented = False

    def __init__(
        self, config: BartDenoisingConfig, tokens: SpecialTokens, sequence_length: int, document_mask: bool = False
    ):
        if config.rate == config.permute_share == 0:
            raise ConfigError(
                f"objective.rate = {config.rate} and objective.permute_share = {config.permute_share} leave the text "
                "as it is, and copying it is nothing to learn; set one of them above 0"
            )
        if sequence_length < 2:
            raise ConfigError(
                f"data.sequence_length: {sequence_length} is too short for text and the end mark; set 2 or more"
            )
        self.config = config
        self.tokens = tokens
        self.mask = tokens.need_mask(config.kind)
        self.source_length = self.target_length = sequence_length
        self.raw_length = sequence_length - 1

    def sample(self, text: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Noise one piece of text.

        Args:
            text: [n] token ids, 0 <= n <= raw_length; a shorter piece is padded after its eos.
            rng: the only source of randomness.

        Returns:
            int64 arrays `input_ids` [S], `attention_mask` [S] (1 real, 0 pad), `decoder_input_ids` [T] (bos, then the
            labels shifted), `labels` [T] (pad -100).
        """
        text = np.asarray(text, dtype=np.int64)
        eos = [self.tokens.eos]
        source = np.concatenate([self._infill(self._permute(text, rng), rng), eos])
        target = np.concatenate([text, eos])
        shifted = np.concatenate([[self.tokens.bos], text])
        return {
            "input_ids": padded(source, self.source_length, self.tokens.pad),
            "attention_mask": padded(np.ones_like(source), self.source_length, 0),
            "decoder_input_ids": padded(shifted, self.target_length, self.tokens.pad),
            "labels": padded(target, self.target_length, IGNORE_INDEX),
        }

    def _permute(self, text: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The text with the sentences of each document in another order."""
        parts: list[np.ndarray] = []
        ends = np.flatnonzero(text == self.tokens.eos)
        for document in np.split(text, np.sort(np.concatenate([ends, ends + 1]))):  # every eos is a part by itself
            sentences = np.split(document, np.flatnonzero(self.tokens.pieces.sentence_starts(document))[1:])
            order = shuffled_places(len(sentences), self.config.permute_share, rng)
            parts += [sentences[place] for place in order]
        return np.concatenate(parts)

    def _infill(self, text: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The text with spans of it replaced by one mask each."""
        lengths = span_lengths(round(self.config.rate * len(text)), self.config.mean_span_length, rng)
        kept = len(text) - int(lengths.sum())
        source = np.full(kept + len(lengths), self.mask, dtype=np.int64)
        places = np.sort(rng.choice(len(source), len(lengths), replace=False))
        is_text = np.ones(len(source), dtype=bool)
        is_text[places] = False
        removed = np.zeros(len(text), dtype=bool)
        before = places - np.arange(len(places))  # kept tokens before each span
        starts = before + np.cumsum(lengths) - lengths
        for start, length in zip(starts, lengths, strict=True):
            removed[start : start + length] = True
        source[is_text] = text[~removed]
        return source


def span_lengths(total: int, mean: float, rng: np.random.Generator) -> np.ndarray:
    """Poisson lengths that sum up to `total`, int64 [spans], in random order.

    They are drawn until their sum reaches `total`, and the last is cut. Zeros are kept up to as many spans as `total`.
    """
    lengths: list[int] = []
    left = total
    while left > 0:
        length = min(int(rng.poisson(mean)), left)
        lengths.append(length)
        left -= length
    drawn = np.array(lengths, dtype=np.int64)
    zeros = np.flatnonzero(drawn == 0)
    excess = max(len(drawn) - total, 0)  # at most the zeros: the others are each 1 or more
    return rng.permutation(np.delete(drawn, zeros[:excess]))


def shuffled_places(count: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """An order of `count` things, int64, in which round(share * count) random ones are shuffled and the others stay."""
    order = np.arange(count)
    moved = np.sort(rng.choice(count, round(share * count), replace=False))
    order[moved] = rng.permutation(moved)
    return order
