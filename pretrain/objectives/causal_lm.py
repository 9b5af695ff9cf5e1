"""Causal language modelling (Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training").

Every token is predicted from those before it. Input: `bos x0 x1 ... x(n-2)`. Labels: `x0 x1 ... x(n-1)`, so that over
an epoch every token of the corpus is predicted once.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from pretrain.objectives.arrays import opened, padded
from pretrain.objectives.cross_entropy import IGNORE_INDEX
from pretrain.objectives.registry import OBJECTIVES
from pretrain.objectives.tokens import SpecialTokens
from pretrain.registry import Section


class CausalLMConfig(Section):
    """Causal language modelling (GPT): predict every token from those before it."""

    kind: Literal["causal_lm"] = "causal_lm"
    """Predict every token from those before it."""


@OBJECTIVES.register(CausalLMConfig)
class CausalLM:
    """Turns a piece of text into what precedes each token, and the tokens as labels.

    Args:
        config: no keys.
        tokens: special ids of the tokenizer.
        sequence_length: T, positions of the decoder.
        document_mask: number the documents of a sample; each begins with bos, where else the eos of the one before
            stands.
    """

    families = frozenset({"decoder"})
    maskable = True
    source_length = 0

    def __init__(
        self, config: CausalLMConfig, tokens: SpecialTokens, sequence_length: int, document_mask: bool = False
    ):
        self.tokens = tokens
        self.segmented = self.document_mask = document_mask
        self.raw_length = self.target_length = sequence_length

    def sample(self, text: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Shift one piece of text; `rng` is not used.

        Args:
            text: [n] token ids, 0 <= n <= T; a shorter piece is padded. Of no text only bos is left, without a label.

        Returns:
            int64 arrays [T]: `input_ids`, `attention_mask` (document numbers, 0 pad), `labels` (pad -100).
        """
        text = np.asarray(text, dtype=np.int64)
        ids, documents = opened(text, self.tokens, self.document_mask)
        return {
            "input_ids": padded(ids, self.target_length, self.tokens.pad),
            "attention_mask": padded(documents, self.target_length, 0),
            "labels": padded(text, self.target_length, IGNORE_INDEX),
        }
