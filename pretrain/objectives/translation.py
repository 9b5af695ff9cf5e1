"""Translation (Vaswani et al. 2017): the encoder reads a source text, the decoder writes its translation.

The text of a sample is one pair, or several that are packed: `source eos target eos` of each, one after the other.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PositiveInt

from pretrain.errors import ConfigError
from pretrain.objectives.arrays import padded
from pretrain.objectives.cross_entropy import IGNORE_INDEX
from pretrain.objectives.registry import OBJECTIVES
from pretrain.objectives.tokens import SpecialTokens
from pretrain.registry import Section

Language = Annotated[str, Field(pattern=r"^[A-Za-z]{2,3}([_.@-][A-Za-z0-9]+)*$")]


class TranslationConfig(Section):
    """Translation: write the target of a source; data.train is parallel text."""

    kind: Literal["translation"] = "translation"
    """Translate the source into the target; data.train is `gettext`, a .tsv file, or a .jsonl file of pairs."""
    source_language: Language = "en"
    """Language of the sources, for data.train=gettext; `en` is that of the messages themselves."""
    target_language: Language | None = None
    """Language of the targets, e.g. de or pt_BR, as the catalogues' folders are called; gettext needs it."""
    target_length: PositiveInt | None = None
    """Tokens of the decoder's input; default: data.sequence_length."""


@OBJECTIVES.register(TranslationConfig)
class Translation:
    """Turns pairs into the encoder's input, the decoder's input and the labels. Nothing is random and nothing is cut.

    Args:
        config: see `TranslationConfig`.
        tokens: special ids of the tokenizer.
        sequence_length: S, tokens of the encoder's input, an eos for each pair included.
        document_mask: pairs are packed: as many in one sample as both sides have room for, numbered 1, 2, ...

    Attributes:
        raw_length: text that a sample takes at most, eos not counted.
        target_length: T, tokens of the decoder's input and of the labels, an eos for each pair included.

    Raises:
        ConfigError: a length without room for a token and eos.
    """

    unit = "pairs"
    families = frozenset({"encoder_decoder"})
    maskable = True

    def __init__(
        self, config: TranslationConfig, tokens: SpecialTokens, sequence_length: int, document_mask: bool = False
    ):
        self.config = config
        self.tokens = tokens
        self.segmented = document_mask
        self.source_length = sequence_length
        self.target_length = config.target_length or sequence_length
        lengths = {"data.sequence_length": self.source_length, "objective.target_length": self.target_length}
        for key, length in lengths.items():
            if length < 2:
                raise ConfigError(f"{key}: {length} is too short for a token and the end mark; set 2 or more")
        self.raw_length = self.source_length + self.target_length - 2

    def sample(self, text: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Lay out pairs.

        Args:
            text: [n] token ids: `source eos target eos`, several times where pairs are packed. Without any eos, n <=
                raw_length, it is taken as one pair in the ratio of both lengths (text that is no pair, to try a model).
            rng: not used.

        Returns:
            int64 arrays `input_ids` [S] and `attention_mask` [S] (pair k's number, 0 pad), `decoder_input_ids` [T] (bos
            before each target, in the place of its eos), `labels` [T] (pad -100); with document_mask also
            `decoder_attention_mask` [T], numbered alike.

        Raises:
            ValueError: the text is no whole pairs, or more than fit.
        """
        sides = self._sides(np.asarray(text, dtype=np.int64))
        sources, targets = sides[0::2], sides[1::2]
        if len(sources) > 1 and not self.segmented:
            raise ValueError(f"{len(sources)} pairs in one sample need document_mask")
        shifted = [np.concatenate([[self.tokens.bos], target[:-1]]) for target in targets]
        arrays = {
            "input_ids": padded(np.concatenate(sources), self.source_length, self.tokens.pad),
            "attention_mask": padded(_numbers(sources), self.source_length, 0),
            "decoder_input_ids": padded(np.concatenate(shifted), self.target_length, self.tokens.pad),
            "labels": padded(np.concatenate(targets), self.target_length, IGNORE_INDEX),
        }
        if self.segmented:
            arrays["decoder_attention_mask"] = padded(_numbers(targets), self.target_length, 0)
        return arrays

    def _sides(self, text: np.ndarray) -> list[np.ndarray]:
        """Source, target, source, target, ..., each with its eos."""
        ends = np.flatnonzero(text == self.tokens.eos) + 1
        if len(ends) == 0:
            cut = len(text) * (self.source_length - 1) // self.raw_length
            eos = [self.tokens.eos]
            return [np.concatenate([text[:cut], eos]), np.concatenate([text[cut:], eos])]
        if len(ends) % 2 or ends[-1] != len(text):
            raise ValueError("a text of pairs is `source eos target eos`, as often as there are pairs")
        return np.split(text, ends[:-1])


def _numbers(pieces: list[np.ndarray]) -> np.ndarray:
    """1 for each token of the first piece, 2 for each of the second, ..."""
    return np.repeat(np.arange(1, len(pieces) + 1), [len(piece) for piece in pieces])
