"""Words and sentences of hand-written pieces."""

import numpy as np
import pytest

from pretrain.objectives.pieces import Pieces

SPECIAL = b""


def groups(pieces, kind):
    """The pieces put together to words or sentences, as text; `<>` is a special piece."""
    raw = [piece.encode() if isinstance(piece, str) else piece for piece in pieces]
    table = Pieces(raw)
    starts = getattr(table, f"{kind}_starts")(np.arange(len(raw)))
    cut = np.split(np.array([piece or b"<>" for piece in raw], dtype=object), np.flatnonzero(starts)[1:])
    return [b"".join(group.tolist()).decode() for group in cut]


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([" un", "believ", "able", " cat", "s"], [" unbelievable", " cats"]),
        (["in", " the", " ", "end"], ["in", " the", " ", "end"]),
        (["call", "_", "soon", "2", "(", "x", ".y", "):", "\n"], ["call_soon2", "(", "x", ".y", "):", "\n"]),
        (["don", "'", "t", " stop", "!\"", "no"], ["don", "'", "t", " stop", "!\"", "no"]),
        (["a", SPECIAL, "b", SPECIAL, SPECIAL, "c"], ["a", "<>", "b", "<>", "<>", "c"]),
        (["\n", "    ", "x", "\t", "y"], ["\n", "    ", "x", "\t", "y"]),
        ([" na", "ï", "ve", " u", "\u0308", "ber"], [" naïve", " u\u0308ber"]),  # a combining mark
        ([" हि", "न्दी"], [" हिन्दी"]),
        (["日", "本", "語", "テ", "한", "국"], ["日", "本", "語", "テ", "한국"]),
        ([" na", b"\xc3", b"\xaf", "ve"], [" naïve"]),  # bytes of a letter
        ([" x", b"\xe6", b"\x97", b"\xa5", b"\xe6", b"\x9c", b"\xac"], [" x", "日", "本"]),
        ([b"a", b"b", b" ", b"c", b"\n"], ["ab", " ", "c", "\n"]),
        ([b"\xf0", b"\x9f", b"\x98", b"\x80", "!"], ["😀", "!"]),
        (["one"], ["one"]),
    ],
)  # fmt: skip
def test_words(pieces, words):
    assert groups(pieces, "word") == words


@pytest.mark.parametrize(
    ("pieces", "sentences"),
    [
        (["One", ".", " Two", "!", " Thr", "ee?", " Four"], ["One.", " Two!", " Three?", " Four"]),
        (["x", ".", "y", " =", " 1", ".5", "\n", "z"], ["x.y = 1.5\n", "z"]),
        (["One.", "\n", "\n", " \n", "    ", "Two", "\n"], ["One.\n\n \n", "    Two\n"]),
        (["He", " said", ' "no', '."', " Then", " he", " left", "."], ['He said "no."', " Then he left."]),
        (["Wait", "…", " what"], ["Wait…", " what"]),
        (["你好。", "再见", "！", "好"], ["你好。", "再见！", "好"]),
        (["a\r", "\n", "b"], ["a\r\n", "b"]),
        (["a\n  ", "b", "c\n\n", "d"], ["a\n  ", "bc\n\n", "d"]),
        (["no", " end"], ["no end"]),
        (["."], ["."]),
    ],
)
def test_sentences(pieces, sentences):
    assert groups(pieces, "sentence") == sentences


def test_no_tokens_make_no_groups():
    table = Pieces([b"a"])
    nothing = np.array([], dtype=np.int64)
    assert table.word_starts(nothing).tolist() == table.sentence_starts(nothing).tolist() == []


def test_special_pieces_are_no_text():
    table = Pieces([SPECIAL, b"a", SPECIAL, b" ", b"\xc3"])
    assert table.is_text.tolist() == [False, True, False, True, True]
    assert table.text_ids.tolist() == [1, 3, 4]
