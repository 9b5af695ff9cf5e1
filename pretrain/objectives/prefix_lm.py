"""Prefix language modelling (Raffel et al. 2020, section 3.2.1; Liu et al. 2018, arXiv 1801.10198).

A decoder sees the first tokens of a text, its prefix, from every position, and predicts the rest one by one. With q
tokens of prefix, positions 0 .. q hold `bos x0 ... x(q-1)` and see each other; the first label is x(q), at position q.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from pretrain.errors import ConfigError
from pretrain.objectives.arrays import opened, padded, runs
from pretrain.objectives.cross_entropy import IGNORE_INDEX
from pretrain.objectives.registry import OBJECTIVES
from pretrain.objectives.tokens import SpecialTokens
from pretrain.registry import Section

Share = Annotated[float, Field(ge=0, le=1)]


class PrefixLMConfig(Section):
    """Prefix language modelling: predict the rest of a text whose beginning every position sees."""

    kind: Literal["prefix_lm"] = "prefix_lm"
    """Predict what follows a prefix that every position sees."""
    min_prefix_share: Share = 0.0
    """Smallest share of a text's tokens that is its prefix."""
    max_prefix_share: Share = 1.0
    """Largest share; at least the last token is always predicted."""


@OBJECTIVES.register(PrefixLMConfig)
class PrefixLM:
    """Turns a piece of text into a prefix and labels behind it.

    The prefix of a document of n tokens has q tokens, uniform over the integers from round(min_prefix_share * n) to
    round(max_prefix_share * n), both at most n - 1. Without document_mask the whole piece is one document.

    Args:
        config: shares; see `PrefixLMConfig`.
        tokens: special ids of the tokenizer.
        sequence_length: T, positions of the decoder.
        document_mask: number the documents of a sample; each has bos and a prefix of its own.

    Raises:
        ConfigError: the smallest share is above the largest.
    """

    families = frozenset({"decoder"})
    maskable = True
    segmented = True
    source_length = 0

    def __init__(
        self, config: PrefixLMConfig, tokens: SpecialTokens, sequence_length: int, document_mask: bool = False
    ):
        if config.min_prefix_share > config.max_prefix_share:
            raise ConfigError(
                f"objective.min_prefix_share = {config.min_prefix_share} is above objective.max_prefix_share = "
                f"{config.max_prefix_share}; set a smaller objective.min_prefix_share"
            )
        self.config = config
        self.tokens = tokens
        self.document_mask = document_mask
        self.raw_length = self.target_length = sequence_length

    def sample(self, text: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Choose the prefixes of one piece of text.

        Args:
            text: [n] token ids, 0 <= n <= T; a shorter piece is padded. Of no text only bos is left, without a label.
            rng: the only source of randomness.

        Returns:
            int64 arrays [T]: `input_ids`, `attention_mask` (k for document k, -k in its prefix, 0 pad), `labels`
            (-100 where the label lies in the prefix, and on padding).
        """
        text = np.asarray(text, dtype=np.int64)
        labels = text.copy()
        ids, documents = opened(text, self.tokens, self.document_mask)
        for start, end in runs(documents):
            prefix = self._prefix_length(end - start, rng)
            labels[start : start + prefix] = IGNORE_INDEX
            documents[start : start + prefix + 1] *= -1  # its bos, too, is seen by all
        return {
            "input_ids": padded(ids, self.target_length, self.tokens.pad),
            "attention_mask": padded(documents, self.target_length, 0),
            "labels": padded(labels, self.target_length, IGNORE_INDEX),
        }

    def _prefix_length(self, length: int, rng: np.random.Generator) -> int:
        low, high = self.config.min_prefix_share, self.config.max_prefix_share
        first, last = (min(round(share * length), length - 1) for share in (low, high))
        return int(rng.integers(first, last, endpoint=True))
