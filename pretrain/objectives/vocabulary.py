"""What a tokenizer trained here holds beside text."""

from __future__ import annotations

MARKS, BYTE_PIECES = 4, 256
"""Pad, unknown, begin, end; one piece a byte."""


def reserved_pieces(sentinels: int, mask: bool = False) -> int:
    """Number of pieces that are no text: marks, sentinels, the mask piece where there is one, bytes."""
    return MARKS + sentinels + mask + BYTE_PIECES
