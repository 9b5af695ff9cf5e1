"""Registry of training objectives, and what each of them is."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import numpy as np

from pretrain.objectives.tokens import SpecialTokens
from pretrain.registry import Registry, Section


class Objective(Protocol):
    """Turns a piece of text into the arrays of one sample.

    Built as `Objective(config, tokens, sequence_length, document_mask)`. One whose samples are not cut from a stream of
    text states what they are made of as `unit` (see `data.units`).

    What it needs of the tokenizer stands in its config: a key `sentinels` for their number, the class attribute
    `mask_piece = True` for a mask piece.
    """

    families: ClassVar[frozenset[str]]
    """Values of model.family that it trains."""
    maskable: ClassVar[bool]
    """Whether it goes with data.document_mask."""
    segmented: bool
    """Whether attention_mask tells documents or prefixes apart, and not only padding (see `blocks.masks`)."""
    raw_length: int
    """Tokens of text that one sample takes."""
    source_length: int
    """Positions of the encoder; 0 where there is none."""
    target_length: int
    """Positions of the decoder; 0 where there is none."""

    def __init__(self, config: Section, tokens: SpecialTokens, sequence_length: int, document_mask: bool = False): ...

    def sample(self, text: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Arrays int64 of one sample from 0..raw_length tokens of text.

        `input_ids`, `attention_mask` and `labels` (-100 where nothing is predicted); an encoder-decoder also
        `decoder_input_ids` and, where `segmented`, `decoder_attention_mask`.
        """
        ...


OBJECTIVES: Registry[Any] = Registry("objective")
