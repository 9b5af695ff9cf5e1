"""Words and sentences at the level of tokens, from what each piece of a tokenizer spells.

A *word* is a run of letters, marks, digits and underscores, together with the spaces that its first piece begins
with; punctuation is a word of its own, as in BERT, and so is every piece of a script written without spaces between
words (Chinese, Japanese). A piece that mixes these is never split: `():` is one word, `._x` begins one.

A *sentence* is a line, or ends within a line after `.`, `!`, `?` or an ellipsis that a space follows (closing quotes
and brackets of the same piece included), and after the full stops of Chinese and Japanese. Empty lines belong to the
sentence before them. Abbreviations end sentences too: nobody needs to read the result.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

CLOSING = r"[\"'”’»)\]}」』）]*\Z"
STOP = re.compile(r"[.!?…]" + CLOSING)
WIDE_STOP = re.compile(r"[。！？]" + CLOSING)
LINE_BREAKS = "\n\r"
SPACES = " \t\n\r"
# CJK radicals, kana, ideographs; compatibility ideographs; the planes of rare ideographs.
UNSPACED = ((0x2E80, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))


class Pieces:
    """Tables over the vocabulary.

    Args:
        spelling: for each id the bytes that it stands for; b"" for pieces that stand for no text.

    Attributes:
        is_text: [V] bool, pieces that stand for text.
        text_ids: their ids, int64.
    """

    def __init__(self, spelling: Sequence[bytes]):
        self.is_text = _table(spelling, bool)
        self.text_ids = np.flatnonzero(self.is_text).astype(np.int64)
        self._opens_word = _table(spelling, _opens_word)
        self._closes_word = _table(spelling, _closes_word)
        texts = [raw.decode(errors="replace") for raw in spelling]
        self._stop = _table(texts, STOP.search)
        self._wide_stop = _table(texts, WIDE_STOP.search)
        self._space = _table(texts, lambda text: text[:1] in SPACES and text != "")
        self._breaks_after = _table(texts, lambda text: text.rstrip(" \t").endswith(tuple(LINE_BREAKS)))
        self._breaks_before = _table(texts, lambda text: text.lstrip(" \t").startswith(tuple(LINE_BREAKS)))

    def word_starts(self, ids: np.ndarray) -> np.ndarray:
        """Which tokens begin a word: ids [n] -> bool [n]; pieces that stand for no text are words of their own."""
        starts = self._opens_word[ids]
        starts[1:] |= self._closes_word[ids[:-1]]
        starts[:1] = True
        return starts

    def sentence_starts(self, ids: np.ndarray) -> np.ndarray:
        """Which tokens begin a sentence: ids [n] of one document -> bool [n]."""
        before, after = ids[:-1], ids[1:]
        ends = self._breaks_after[before] | (self._stop[before] & self._space[after]) | self._wide_stop[before]
        starts = np.ones(len(ids), dtype=bool)
        starts[1:] = ends & ~self._breaks_before[after]
        return starts


def _table(items: Sequence[Any], holds: Callable[[Any], object]) -> np.ndarray:
    return np.fromiter((bool(holds(item)) for item in items), dtype=bool, count=len(items))


def _opens_word(raw: bytes) -> bool:
    """Whether a piece begins a word whatever stands before it."""
    if not raw:
        return True
    if len(raw) == 1 and raw[0] >= 0x80:  # a byte piece: part of a character, of which the first byte may begin a word
        return raw[0] >= 0xE0
    return not _joins(raw.decode(errors="replace")[0])


def _closes_word(raw: bytes) -> bool:
    """Whether the piece after this one begins a word whatever it is."""
    if not raw:
        return True
    if len(raw) == 1 and raw[0] >= 0x80:
        return False
    return not _joins(raw.decode(errors="replace")[-1])


def _joins(character: str) -> bool:
    """Whether a character makes words together with its neighbours."""
    if any(first <= ord(character) <= last for first, last in UNSPACED):
        return False
    return character == "_" or unicodedata.category(character)[0] in "LMN"
