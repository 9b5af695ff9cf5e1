"""SentencePiece models: layout, determinism, exact round trips, wrong files."""

import io

import numpy as np
import pytest
import sentencepiece

from pretrain.data.corpus import NOTHING_HELD_OUT, Split, rank_of, scan
from pretrain.data.tokenizer import LONGEST_LINE, Tokenizer, train_tokenizer, training_lines
from pretrain.errors import DataError

TEXTS = [
    "",
    " ",
    "   leading",
    "trailing  ",
    "a\tb\t\t c",
    "\n\n  x\r\n\ty\n",
    "def f(x):\n        return  x\n",
    "😀 👩‍👩‍👧 ünïcödé 日本語　テキスト",
    "<extra_id_0> <pad> </s> <0x0A>",
    "\x00\x7f\u200b\ufeff",
]


def test_pieces_are_in_the_agreed_order(tokenizer):
    assert (tokenizer.special.pad, tokenizer.special.unk, tokenizer.special.bos, tokenizer.special.eos) == (0, 1, 2, 3)
    assert tokenizer.special.sentinels == tuple(range(4, 104))
    assert tokenizer.vocab_size == 800
    assert tokenizer.encode("\n") == [104 + ord("\n")]  # byte pieces follow the sentinels


@pytest.mark.parametrize("text", TEXTS)
def test_spelling_is_the_text_of_every_piece(tokenizer, text):
    spelling = tokenizer.special.spelling()
    assert len(spelling) == tokenizer.vocab_size
    assert b"".join(spelling[token] for token in tokenizer.encode(text)) == text.encode()


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_exactly(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_real_documents_come_back_exactly(tokenizer, corpus):
    texts = [document.text for document in corpus.documents()]
    ids = tokenizer.encode_batch(texts)
    assert ids == [tokenizer.encode(text) for text in texts]
    assert [tokenizer.decode(tokens) for tokens in ids] == texts
    assert sum(map(len, texts)) / sum(map(len, ids)) > 2  # characters a token: it has learnt something


def test_special_pieces_are_never_matched_in_text(tokenizer):
    special = {0, 1, 2, 3, *tokenizer.special.sentinels}
    assert not special & set(tokenizer.encode("<extra_id_0><pad><s></s><unk>"))


def test_indentation_is_one_piece(tokenizer):
    assert len(tokenizer.encode(" " * 8)) == 1


def test_show_names_special_pieces(tokenizer):
    ids = [*tokenizer.encode("a b"), tokenizer.special.sentinels[7], *tokenizer.encode(" c"), tokenizer.special.eos]
    assert tokenizer.show(ids) == "a b<extra_id_7> c</s>"


def test_training_twice_gives_the_same_file(corpus, model_path):
    characters = scan(corpus).characters
    again = train_tokenizer(training_lines(corpus, NOTHING_HELD_OUT, characters), vocab_size=800, sentinels=100)
    assert again == model_path.read_bytes()


def test_the_sample_is_of_the_size_asked_for_and_the_same_each_time(corpus):
    characters = scan(corpus).characters
    lines = list(training_lines(corpus, NOTHING_HELD_OUT, characters, sample_characters=characters // 4))
    assert lines == list(training_lines(corpus, NOTHING_HELD_OUT, characters, sample_characters=characters // 4))
    assert 0.2 < sum(map(len, lines)) / characters < 0.3


def test_held_out_documents_are_not_trained_on(corpus):
    documents = list(corpus.documents())
    split = Split(sorted(rank_of(d.name) for d in documents)[3])
    kept = "".join(d.text for d in documents if not split.holds_out(d.name))
    lines = set(training_lines(corpus, split, 1, sample_characters=1))
    assert all(line in kept for line in lines)
    held_only = {line for d in documents if split.holds_out(d.name) for line in d.text.splitlines()} - {""}
    assert any(line not in kept for line in held_only)


def test_long_lines_are_cut_and_tabs_are_ends(tmp_path):
    from pretrain.data.corpus import open_corpus

    (tmp_path / "a.txt").write_text("x" * (2 * LONGEST_LINE + 1) + "\tend")
    lines = list(training_lines(open_corpus(str(tmp_path)), NOTHING_HELD_OUT, 1, sample_characters=1))
    assert [len(line) for line in lines] == [LONGEST_LINE, LONGEST_LINE, 1, 3]


def test_a_vocabulary_that_does_not_fit_names_the_key():
    with pytest.raises(DataError, match=r"^data\.vocab_size: 360 has no room .* the 360 other"):
        train_tokenizer(["text"], vocab_size=360, sentinels=100)
    with pytest.raises(DataError, match=r"^data\.vocab_size: 361 has no room .* the 361 other"):
        train_tokenizer(["text"], vocab_size=361, sentinels=100, mask=True)
    with pytest.raises(DataError, match=r"^data\.vocab_size: 5000 pieces cannot be made"):
        train_tokenizer(["too little text"], vocab_size=5000, sentinels=100)


def test_missing_and_damaged_files_say_the_cure(tmp_path, model_path):
    with pytest.raises(DataError, match=r"data\.tokenizer: .*No such file"):
        Tokenizer.load(tmp_path / "absent.model")
    with pytest.raises(DataError, match=r"data\.tokenizer"):
        Tokenizer.load(tmp_path)
    for name, content in {"cut": model_path.read_bytes()[:-5000], "text": b"hello " * 99, "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=r"prepare_data\.py tokenizer"):
            Tokenizer.load(tmp_path / name, sentinels=100)


def test_a_model_without_special_pieces_says_which(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some words of text"] * 9),
        model_writer=model,
        vocab_size=20,
        model_type="bpe",
        minloglevel=2,
    )
    (tmp_path / "plain.model").write_bytes(model.getvalue())
    with pytest.raises(DataError, match=r"has no pad piece.*prepare_data\.py tokenizer"):
        Tokenizer.load(tmp_path / "plain.model")


def test_special_pieces_spell_nothing(tokenizer):
    special = {0, 1, 2, 3, *tokenizer.special.sentinels}
    assert set(np.flatnonzero(~tokenizer.special.pieces.is_text).tolist()) == special


def test_words_and_lines_of_real_text(tokenizer):
    text = "def connect(self, host):\n    # Opens it. Then waits.\n    return await self._loop.run()\n"
    ids = np.array(tokenizer.encode(text))

    def groups(starts):
        return [tokenizer.decode(part) for part in np.split(ids, np.flatnonzero(starts)[1:])]

    pieces = tokenizer.special.pieces
    sentences = ["def connect(self, host):\n", "    # Opens it.", " Then waits.\n"]
    assert groups(pieces.sentence_starts(ids)) == [*sentences, "    return await self._loop.run()\n"]
    words = groups(pieces.word_starts(ids))
    assert "".join(words) == text
    assert {"def", "connect", "self", "host", "Opens", "it", "Then", "await"} <= {word.strip() for word in words}


@pytest.fixture(scope="module")
def masked_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("masked") / "masked.model"
    path.write_bytes(train_tokenizer(["some lines of text"] * 20, vocab_size=280, sentinels=7, mask=True))
    return path


def test_the_mask_piece_follows_the_sentinels(masked_path, tokenizer):
    masked = Tokenizer.load(masked_path, sentinels=7, mask=True)
    assert masked.special.sentinels == tuple(range(4, 11))
    assert masked.special.mask == 11
    assert masked.encode("\n") == [12 + ord("\n")]
    assert masked.show([11, 11]) == "<mask><mask>"
    assert 11 not in masked.encode("<mask>")  # its name in the text is spelled out
    assert not masked.special.pieces.is_text[11]
    assert tokenizer.special.mask is None


def test_a_model_without_a_mask_piece_says_the_cure(model_path):
    with pytest.raises(DataError, match=r"^data\.tokenizer: .*small\.model has no <mask> piece; .* tokenizer --mask"):
        Tokenizer.load(model_path, mask=True)


def test_a_mask_piece_of_another_name_or_type_is_found(tmp_path):
    for name in ("[MASK]", "<mask>"):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["some words of text"] * 9),
            model_writer=model,
            vocab_size=24,
            model_type="bpe",
            pad_id=3,
            user_defined_symbols=[name],
            minloglevel=2,
        )
        (tmp_path / "other.model").write_bytes(model.getvalue())
        special = Tokenizer.load(tmp_path / "other.model", mask=True).special
        assert special.mask == 4
        assert not special.pieces.is_text[4]


def test_too_few_sentinels_say_how_many(model_path):
    with pytest.raises(DataError, match=r"has 100 sentinel pieces.*101 are needed \(objective\.sentinels\)"):
        Tokenizer.load(model_path, sentinels=101)
