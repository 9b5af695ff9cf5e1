"""The fast tokenizer against SentencePiece, on thousands of real strings and after a round trip through a folder."""

import io
import random
import sysconfig
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer, BartConfig, BertConfig

from pretrain.data.corpus import NOTHING_HELD_OUT, open_corpus, scan
from pretrain.data.tokenizer import Tokenizer, train_tokenizer, training_lines
from pretrain.errors import CheckpointError
from pretrain.hf.tokenizer import Marks, fast_tokenizer, verify_tokenizer

HARD = [
    "",
    " ",
    "  two before",
    "two after  ",
    "\t\ttab\tstops",
    "\n",
    "a\r\n\n b",
    "é ü ß 日本語　テキスト עברית",
    "😀 👩‍👩‍👧 🇩🇪",
    "\x00\x7f\u200b\ufeff",
    "<0x0A> <extra_id_> <extra_id_1000x",
    "a\u2581b",
    "-" * 301,
    "ab" * 500,
]
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<extra_id_0>")


@pytest.fixture(scope="module")
def corpus():
    return open_corpus(str(Path(sysconfig.get_path("stdlib")) / "email"), "**/*.py")


@pytest.fixture(scope="module")
def texts():
    """More than 3000 strings: lines, several lines, and files from where lines do not begin."""
    documents = [d.text for d in open_corpus(str(Path(sysconfig.get_path("stdlib"))), "[a-h]*.py").documents()]
    lines = [line for text in documents for line in text.splitlines(keepends=True)]
    random.Random(0).shuffle(lines)
    found = [*lines[:3000], *("".join(text.splitlines(keepends=True)[5:9]) for text in documents)]
    found += [text[101:1500] for text in documents] + HARD
    return [text for text in found if not any(name in text for name in SPECIAL)]


@pytest.fixture(scope="module")
def model_path(corpus, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.model"
    lines = training_lines(corpus, NOTHING_HELD_OUT, scan(corpus).characters)
    path.write_bytes(train_tokenizer(lines, vocab_size=1500, sentinels=100))
    return path


@pytest.fixture(scope="module")
def tokenizer(model_path):
    return Tokenizer.load(model_path, 100)


@pytest.fixture(scope="module")
def fast(model_path):
    return fast_tokenizer(model_path, model_max_length=512)


def test_ids_and_text_are_the_same_on_real_strings(fast, tokenizer, texts):
    assert len(texts) > 3000
    assert verify_tokenizer(fast, tokenizer, texts) == len(texts)


def test_without_special_tokens_the_ids_are_sentencepieces(fast, tokenizer):
    for text in HARD:
        assert fast(text, add_special_tokens=False).input_ids == tokenizer.encode(text)


def test_text_comes_back(fast):
    for text in HARD:
        if "\u2581" not in text:
            assert fast.decode(fast(text).input_ids, skip_special_tokens=True) == text


def test_a_folder_written_and_loaded_by_auto_classes_is_the_same(fast, tokenizer, texts, tmp_path, model_path):
    fast.save_pretrained(tmp_path)
    BartConfig().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(model_path.read_bytes())
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert verify_tokenizer(loaded, tokenizer, texts[::5] + HARD) > 600
    assert (loaded.pad_token_id, loaded.unk_token_id, loaded.bos_token_id, loaded.eos_token_id) == (0, 1, 2, 3)
    assert loaded.model_max_length == 512
    assert loaded("a <extra_id_5>").input_ids[-2:] == [tokenizer.special.sentinels[5], 3]
    assert len(loaded) == tokenizer.vocab_size


def test_sentinels_in_a_prompt_are_those_of_training(fast, tokenizer):
    """Text around a sentinel is cut as in a training sample: no space comes in."""
    first, second = tokenizer.special.sentinels[:2]
    found = fast("def <extra_id_0>(x):\n    return<extra_id_1> x").input_ids
    wanted = [
        *tokenizer.encode("def "),
        first,
        *tokenizer.encode("(x):\n    return"),
        second,
        *tokenizer.encode(" x"),
        3,
    ]
    assert found == wanted


def test_names_of_special_pieces_can_be_spelled_out(fast, tokenizer):
    text = "<extra_id_0> and </s>"
    assert fast(text, split_special_tokens=True).input_ids == [*tokenizer.encode(text), 3]


def test_padding_and_pairs(fast):
    batch = fast(["a", "a b c d"], padding=True, return_tensors="pt")
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert (batch["input_ids"] == 0).equal(batch["attention_mask"] == 0)
    assert sorted(batch) == ["attention_mask", "input_ids"]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
@pytest.mark.parametrize("plain", [True, False])
def test_models_of_users_convert_too(kind, rule, plain, corpus, texts, tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=training_lines(corpus, NOTHING_HELD_OUT, 1, sample_characters=1),
        model_writer=model,
        model_type=kind,
        vocab_size=900,
        byte_fallback=True,
        normalization_rule_name=rule,
        add_dummy_prefix=plain,
        remove_extra_whitespaces=plain,
        pad_id=3,
        eos_id=0,
        bos_id=1,
        unk_id=2,
        minloglevel=2,
    )
    path = tmp_path / "users.model"
    path.write_bytes(model.getvalue())
    assert verify_tokenizer(fast_tokenizer(path, 128), Tokenizer.load(path), texts[::4] + HARD) > 700


def test_a_mismatch_is_an_error_that_names_the_string(fast, corpus, tmp_path):
    path = tmp_path / "other.model"
    lines = training_lines(corpus, NOTHING_HELD_OUT, scan(corpus).characters)
    path.write_bytes(train_tokenizer(lines, vocab_size=1400, sentinels=90))
    with pytest.raises(CheckpointError, match=r"tokenizer: ids .*'some text'") as error:
        verify_tokenizer(fast, Tokenizer.load(path, 90), ["some text", "more"])
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def masked(corpus, tmp_path_factory):
    """A .model file with a mask piece."""
    path = tmp_path_factory.mktemp("masked") / "masked.model"
    lines = training_lines(corpus, NOTHING_HELD_OUT, scan(corpus).characters)
    path.write_bytes(train_tokenizer(lines, vocab_size=600, sentinels=0, mask=True))
    return path


@pytest.mark.parametrize("marks", [Marks(True, False), Marks(True, True), Marks(False, True), Marks(False, False)])
def test_marks_of_a_decoder_and_of_an_encoder(marks, masked, texts, tmp_path):
    """After a round trip through a folder, too."""
    tokenizer = Tokenizer.load(masked, mask=True)
    fast_tokenizer(masked, 64, marks).save_pretrained(tmp_path)
    BertConfig().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert verify_tokenizer(loaded, tokenizer, texts[::30] + HARD, marks) > 100
    other = Marks(not marks.bos, marks.eos)
    with pytest.raises(CheckpointError, match="tokenizer: ids of the fast tokenizer differ"):
        verify_tokenizer(loaded, tokenizer, ["some text"], other)


def test_the_mask_is_the_tokenizers_mask_token(masked):
    tokenizer = Tokenizer.load(masked, mask=True)
    fast = fast_tokenizer(masked, 64, Marks(True, True))
    assert (fast.mask_token, fast.mask_token_id) == ("<mask>", tokenizer.special.mask)
    wanted = [2, *tokenizer.encode("for "), tokenizer.special.mask, *tokenizer.encode(" in x"), 3]
    assert fast("for <mask> in x").input_ids == wanted  # no space is lost beside it


def test_without_a_mask_piece_there_is_no_mask_token(fast):
    assert fast.mask_token is None


def test_padding_to_the_left(masked):
    fast = fast_tokenizer(masked, 64, Marks(True, False), padding_side="left")
    ids = fast(["a", "a b c d"], padding=True, return_tensors="pt").input_ids
    assert ids[0, 0] == 0
    assert (ids[:, -1] != 0).all()
