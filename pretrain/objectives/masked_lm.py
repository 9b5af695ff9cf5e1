"""Masked language modelling (Devlin et al. 2019, "BERT", section 3.1 and appendix A.1).

Some tokens of `bos text eos` are chosen and predicted. Of the chosen ones most become the mask piece, some a random
piece of text, the rest stay as they are. Whole words can be chosen together (the option of BERT's own code of 2019).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from pretrain.errors import ConfigError
from pretrain.objectives.arrays import opened, padded
from pretrain.objectives.cross_entropy import IGNORE_INDEX
from pretrain.objectives.registry import OBJECTIVES
from pretrain.objectives.tokens import SpecialTokens
from pretrain.registry import Section

Share = Annotated[float, Field(ge=0, le=1)]


class MaskedLMConfig(Section):
    """Masked language modelling (BERT): predict tokens that were masked."""

    mask_piece: ClassVar[bool] = True

    kind: Literal["masked_lm"] = "masked_lm"
    """Predict tokens that were masked."""
    rate: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the text's tokens that is predicted."""
    mask_share: Share = 0.8
    """Share of the predicted tokens that is replaced by the mask piece."""
    random_share: Share = 0.1
    """Share of the predicted tokens that is replaced by a random piece of text; the others stay."""
    whole_word: bool = False
    """Choose whole words, not single tokens."""


@OBJECTIVES.register(MaskedLMConfig)
class MaskedLM:
    """Turns a piece of text into masked text and the labels of what was chosen.

    Only pieces that stand for text are chosen; of m such tokens max(1, round(rate * m)) are, exactly. With whole_word,
    words (see `objectives.pieces`) are gone through in random order, and a word is taken if all its tokens still fit
    into that number: never more tokens are predicted, and fewer only where no other word fits (none, if every word is
    longer). What a chosen token becomes is drawn for each token by itself, also within a word.

    Args:
        config: rates; see `MaskedLMConfig`.
        tokens: special ids and pieces of the tokenizer.
        sequence_length: S, positions of the encoder, bos and eos included.
        document_mask: number the documents of a sample; each begins with bos, where else the eos of the one before
            stands.

    Attributes:
        raw_length: S - 2.
        more_targets: what helps where no token is chosen in any sample, in words.

    Raises:
        ConfigError: no mask piece, shares above 1, or a length without room for text.
    """

    families = frozenset({"encoder"})
    maskable = True
    target_length = 0

    def __init__(
        self, config: MaskedLMConfig, tokens: SpecialTokens, sequence_length: int, document_mask: bool = False
    ):
        if config.mask_share + config.random_share > 1 + 1e-9:
            raise ConfigError(
                f"objective.random_share = {config.random_share} and objective.mask_share = {config.mask_share} are "
                f"more than 1 together; set objective.random_share to {1 - config.mask_share:.4g} or less"
            )
        if sequence_length < 3:
            raise ConfigError(
                f"data.sequence_length: {sequence_length} is too short for text between its begin and end marks; "
                "set 3 or more"
            )
        self.config = config
        self.tokens = tokens
        self.mask = tokens.need_mask(config.kind)
        self.segmented = self.document_mask = document_mask
        self.source_length = sequence_length
        self.raw_length = sequence_length - 2
        self.more_targets = ["a larger objective.rate", *(["objective.whole_word=false"] if config.whole_word else [])]

    def sample(self, text: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Mask one piece of text.

        Args:
            text: [n] token ids, 0 <= n <= raw_length; a shorter piece is padded after its eos.
            rng: the only source of randomness.

        Returns:
            int64 arrays [S]: `input_ids`, `attention_mask` (document numbers, 0 pad), `labels` (-100 where nothing is
            predicted).
        """
        text = np.asarray(text, dtype=np.int64)
        ids, documents = opened(text, self.tokens, self.document_mask)
        ids = np.concatenate([ids, text[-1:], [self.tokens.eos]])
        documents = padded(documents, len(ids), documents[-1])
        chosen = self._choose(ids, rng)
        labels = np.full_like(ids, IGNORE_INDEX)
        labels[chosen] = ids[chosen]
        ids[chosen] = self._replacements(ids[chosen], rng)
        return {
            "input_ids": padded(ids, self.source_length, self.tokens.pad),
            "attention_mask": padded(documents, self.source_length, 0),
            "labels": padded(labels, self.source_length, IGNORE_INDEX),
        }

    def _choose(self, ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Positions to predict."""
        text = np.flatnonzero(self.tokens.pieces.is_text[ids])
        if len(text) == 0:
            return text
        budget = max(1, round(self.config.rate * len(text)))
        if not self.config.whole_word:
            return rng.choice(text, budget, replace=False)
        word_of = np.cumsum(self.tokens.pieces.word_starts(ids))[text]  # no word reaches over a special piece
        _, word_of, sizes = np.unique(word_of, return_inverse=True, return_counts=True)
        return text[np.isin(word_of, _fill(sizes, budget, rng))]

    def _replacements(self, chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """What stands in the input in the place of the chosen tokens."""
        draw = rng.random(len(chosen))
        random = rng.choice(self.tokens.pieces.text_ids, len(chosen))
        masked, replaced = self.config.mask_share, self.config.mask_share + self.config.random_share
        return np.where(draw < masked, self.mask, np.where(draw < replaced, random, chosen))


def _fill(sizes: np.ndarray, budget: int, rng: np.random.Generator) -> list[int]:
    """Words in random order, each taken if it still fits: sizes [words] -> indices, their sizes at most `budget`."""
    taken = []
    for word in rng.permutation(len(sizes)).tolist():
        if sizes[word] <= budget:
            taken.append(word)
            budget -= int(sizes[word])
    return taken
