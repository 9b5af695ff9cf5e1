"""The ids that an objective must know of a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the pieces that stand for no text.

    `bos` starts the decoder (it is the exported model's `decoder_start_token_id`), `eos` ends a document, a source
    and a target, `sentinels` mark the places of removed spans, first to last.
    """

    pad: int
    unk: int
    bos: int
    eos: int
    sentinels: tuple[int, ...]
