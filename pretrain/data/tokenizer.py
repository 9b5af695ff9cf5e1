"""SentencePiece: training a model on a corpus, and using one.

A trained model keeps text as it is: identity normaliser, no removed or added spaces, byte pieces for what has no piece
(newlines, tabs, rare characters). `decode(encode(text)) == text` for every text without U+2581, which SentencePiece
itself uses for the space. BPE rather than unigram: it trains twenty times faster on source code, and its merges turn
into a fast tokenizer exactly, while unigram's ties are broken by float rounding.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import sentencepiece

from pretrain.data.corpus import Corpus, Split
from pretrain.data.hashing import hash128
from pretrain.errors import DataError
from pretrain.objectives.tokens import MASK_COMMAND, SpecialTokens
from pretrain.objectives.vocabulary import reserved_pieces

PAD, UNK, BOS, EOS = 0, 1, 2, 3
SAMPLE_CHARACTERS = 16_000_000  # enough for tens of thousands of pieces; training takes seconds
LONGEST_LINE = 1000  # characters; SentencePiece leaves out lines above 4192 bytes
TRAINING_THREADS = 2  # fixed: the number is written into the model, and so into its fingerprint
TRAIN_COMMAND = "python tools/prepare_data.py tokenizer"
MASK_PIECE = "<mask>"
MASK_PIECES = (MASK_PIECE, "[MASK]")  # the second is what BERT's and ALBERT's models call it
SPACE = "\u2581"  # what SentencePiece writes for a space


def sentinel_piece(index: int) -> str:
    """Name of sentinel `index`, as T5 calls it."""
    return f"<extra_id_{index}>"


class Tokenizer:
    """A SentencePiece model whose special pieces are known.

    Attributes:
        path: the .model file.
        fingerprint: SHA-256 of the file, hex.
        vocab_size: number of pieces.
        special: ids of pad, unk, bos, eos, of all sentinels and of the mask piece; what the other pieces spell.
    """

    def __init__(
        self, path: Path, model: bytes, special: SpecialTokens, processor: sentencepiece.SentencePieceProcessor
    ):
        self.path = path
        self.fingerprint = hashlib.sha256(model).hexdigest()
        self.special = special
        self._processor = processor
        self.vocab_size: int = processor.get_piece_size()

    @classmethod
    def load(cls, path: str | Path, sentinels: int = 0, mask: bool = False) -> Tokenizer:
        """Read a .model file.

        Args:
            path: the file.
            sentinels: how many sentinel pieces `<extra_id_0>` ... it must have.
            mask: whether it must have a piece `<mask>` (or `[MASK]`).

        Raises:
            DataError: no such file, no SentencePiece model, or one without the special pieces.
        """
        path = Path(path).expanduser()
        try:
            model = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"data.tokenizer: {path} cannot be read ({error.strerror}); give a .model file or `auto`"
            ) from error
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise DataError(
                f"data.tokenizer: {path} is no SentencePiece model or is damaged; train one with `{TRAIN_COMMAND}`"
            ) from error
        special = _special_tokens(processor, path, sentinels)
        if mask and special.mask is None:
            raise DataError(f"data.tokenizer: {path} has no {MASK_PIECE} piece; train one that has: `{MASK_COMMAND}`")
        return cls(path, model, special, processor)

    def encode(self, text: str) -> list[int]:
        """Ids of the text; no special piece is added, and none is matched in the text."""
        return self._processor.encode(text)

    def encode_batch(self, texts: Sequence[str], threads: int = 2) -> list[list[int]]:
        """`encode` of each text, by several threads."""
        return self._processor.encode(list(texts), num_threads=threads)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special pieces have none."""
        return self._processor.decode([int(i) for i in ids])

    def show(self, ids: Iterable[int]) -> str:
        """The text of ids with special pieces by their names, for a person to read."""
        parts: list[str] = []
        run: list[int] = []
        for token in map(int, ids):
            if self._processor.is_control(token) or self._processor.is_unknown(token):
                parts += [self.decode(run), self._processor.id_to_piece(token)]
                run = []
            else:
                run.append(token)
        return "".join([*parts, self.decode(run)])


def train_tokenizer(lines: Iterable[str], vocab_size: int, sentinels: int, mask: bool = False) -> bytes:
    """Train a BPE model; the same lines give the same bytes.

    Pieces in order: pad 0, unk 1, bos 2, eos 3, `sentinels` control pieces, the mask piece if asked for, 256 byte
    pieces, text pieces.

    Args:
        lines: text without newlines and tabs; see `training_lines`.
        vocab_size: number of all pieces.
        sentinels: number of `<extra_id_i>` pieces.
        mask: with a `<mask>` piece.

    Raises:
        DataError: the vocabulary has no room for the special pieces, or the text is too small for it.
    """
    reserved = reserved_pieces(sentinels, mask)
    if vocab_size <= reserved:
        raise DataError(
            f"data.vocab_size: {vocab_size} has no room for text; set more than the {reserved} other pieces"
        )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            pad_id=PAD,
            unk_id=UNK,
            bos_id=BOS,
            eos_id=EOS,
            control_symbols=[*map(sentinel_piece, range(sentinels)), *([MASK_PIECE] if mask else [])],
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,  # text after a sentinel or newline is cut as text anywhere else
            allow_whitespace_only_pieces=True,  # indentation becomes one piece
            num_threads=TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(
            f"data.vocab_size: {vocab_size} pieces cannot be made from this corpus, it has too little text; "
            "set a smaller data.vocab_size"
        ) from error
    return model.getvalue()


def planned_tokens(sentinels: int, mask: bool) -> SpecialTokens:
    """The special pieces that `train_tokenizer` will give, before there is a tokenizer; text spells nothing yet."""
    first = EOS + 1
    pieces = tuple(range(first, first + sentinels))
    return SpecialTokens(PAD, UNK, BOS, EOS, pieces, mask=first + sentinels if mask else None)


def training_lines(
    corpus: Corpus, split: Split, characters: int, sample_characters: int = SAMPLE_CHARACTERS
) -> Iterator[str]:
    """Lines of the corpus' training documents, about `sample_characters` of them, the same ones every time.

    Args:
        corpus: what to read.
        split: its held-out documents are left out.
        characters: size of the whole corpus; sets the share of lines that is taken.
        sample_characters: size wanted.
    """
    share = sample_characters / max(characters, 1)
    for document in corpus.documents():
        if split.holds_out(document.name):
            continue
        # SentencePiece keeps the tab for itself and skips lines that hold one.
        lines = document.text.replace("\t", "\n").splitlines()
        rng = np.random.Generator(np.random.Philox(key=hash128("tokenizer", document.name)))
        taken = rng.random(len(lines)) < share
        for line, take in zip(lines, taken, strict=True):
            if take and line:
                yield from (line[i : i + LONGEST_LINE] for i in range(0, len(line), LONGEST_LINE))


def _special_tokens(processor: sentencepiece.SentencePieceProcessor, path: Path, wanted: int) -> SpecialTokens:
    ids = {"pad": processor.pad_id(), "bos": processor.bos_id(), "eos": processor.eos_id()}
    missing = [name for name, token in ids.items() if token < 0]
    if missing:
        raise DataError(
            f"data.tokenizer: {path} has no {' and no '.join(missing)} piece; train one that has: `{TRAIN_COMMAND}`"
        )
    unk = processor.unk_id()
    sentinels: list[int] = []
    while (token := processor.piece_to_id(sentinel_piece(len(sentinels)))) != unk:
        sentinels.append(token)
    if len(sentinels) < wanted:
        raise DataError(
            f"data.tokenizer: {path} has {len(sentinels)} sentinel pieces <extra_id_0>..., {wanted} are needed "
            f"(objective.sentinels); train one that has: `{TRAIN_COMMAND}`"
        )
    mask = next((token for piece in MASK_PIECES if (token := processor.piece_to_id(piece)) != unk), None)
    no_text = frozenset(sentinels if mask is None else [*sentinels, mask])
    return SpecialTokens(
        unk=unk, sentinels=tuple(sentinels), mask=mask, spelling=partial(_spelling, processor, no_text), **ids
    )


def _spelling(processor: sentencepiece.SentencePieceProcessor, no_text: frozenset[int]) -> list[bytes]:
    """For each id the bytes of its text; b"" for special pieces, which `no_text` are too whatever their type."""
    spelling = []
    for token, piece in enumerate(processor.id_to_piece(list(range(processor.get_piece_size())))):
        kinds = processor.is_control, processor.is_unknown, processor.is_unused
        if token in no_text or any(kind(token) for kind in kinds):
            spelling.append(b"")
        elif processor.is_byte(token):
            spelling.append(bytes([int(piece[3:5], 16)]))  # <0x0A>
        else:
            spelling.append(piece.replace(SPACE, " ").encode())
    return spelling
