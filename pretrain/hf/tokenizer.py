"""A SentencePiece model as a native fast tokenizer, with the same ids.

Loading a .model file through transformers' own converters gives other ids for models with an identity normaliser or
byte pieces (leading spaces, runs of spaces and newlines are lost), so the pieces are put together here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece.sentencepiece_model_pb2 as sentencepiece_format
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from pretrain.data.tokenizer import Tokenizer as SentencePieceTokenizer
from pretrain.errors import CheckpointError, DataError
from pretrain.objectives.tokens import SpecialTokens

ModelProto: Any = vars(sentencepiece_format)["ModelProto"]  # made at import, so no type checker sees it
SPACE = "\u2581"  # what SentencePiece writes for a space


@dataclass(frozen=True)
class Marks:
    """What a model reads around a text: bos before it, eos behind it. (A decoder's prompt has no end.)"""

    bos: bool
    eos: bool

    def around(self, ids: list[int], special: SpecialTokens) -> list[int]:
        return [special.bos] * self.bos + ids + [special.eos] * self.eos


SOURCE = Marks(bos=False, eos=True)


def fast_tokenizer(
    model_path: str | Path, model_max_length: int, marks: Marks = SOURCE, padding_side: str = "right"
) -> PreTrainedTokenizerFast:
    """Build the fast tokenizer of a SentencePiece model (BPE or unigram).

    `tokenizer(text).input_ids` are SentencePiece's ids and the marks around them; without these with
    `add_special_tokens=False`. One thing differs on purpose: the name of a special piece in the text, such as
    `<extra_id_0>` or `<mask>`, becomes that piece, so that a prompt can hold blanks. SentencePiece spells it out, and
    so does the fast tokenizer when it is called with `split_special_tokens=True`.

    Args:
        model_path: a .model file with pad, bos and eos.
        model_max_length: positions of the model; longer input is warned of by transformers.
        marks: around each text; by default eos behind it, as T5 has it.
        padding_side: "right" or "left"; where generation goes on from a batch's last column, it must be left.

    Raises:
        DataError: no SentencePiece model, or one with a normaliser that cannot be carried over.
    """
    special = SentencePieceTokenizer.load(model_path).special
    proto = ModelProto()
    proto.ParseFromString(Path(model_path).expanduser().read_bytes())
    tokenizer = Tokenizer(_model(proto))
    tokenizer.normalizer = _normalizer(proto, Path(model_path))
    tokenizer.decoder = _decoder(proto)
    names = [piece.piece for piece in proto.pieces]
    before, behind = [names[special.bos]] * marks.bos, [names[special.eos]] * marks.eos
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join([*before, "$A", *behind]),
        pair=" ".join([*before, "$A", *behind, "$B", *behind]),
        special_tokens=[(names[token], token) for token in (special.bos, special.eos)],
    )
    kinds = ModelProto.SentencePiece
    tokenizer.add_special_tokens([_added(p.piece) for p in proto.pieces if p.type in (kinds.CONTROL, kinds.UNKNOWN)])
    tokenizer.add_tokens([_added(p.piece) for p in proto.pieces if p.type == kinds.USER_DEFINED])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=model_max_length,
        pad_token=names[special.pad],
        unk_token=names[special.unk],
        bos_token=names[special.bos],
        eos_token=names[special.eos],
        mask_token=None if special.mask is None else names[special.mask],
        extra_special_tokens=[names[sentinel] for sentinel in special.sentinels],
        clean_up_tokenization_spaces=False,
        padding_side=padding_side,
        model_input_names=["input_ids", "attention_mask"],
    )


def verify_tokenizer(
    fast: PreTrainedTokenizerFast, tokenizer: SentencePieceTokenizer, texts: Iterable[str], marks: Marks = SOURCE
) -> int:
    """Check that both tokenizers give the same ids and the same text back. Returns the number of texts.

    Of a unigram model the same pieces in another order pass too: they are equally likely (`--` + `-` or `-` + `--`),
    and which one is found is decided by how scores are rounded.

    Raises:
        CheckpointError: names the first text on which they differ.
    """
    unigram = isinstance(fast.backend_tokenizer.model, models.Unigram)
    checked = 0
    for text in texts:
        ids = tokenizer.encode(text)
        wanted = marks.around(ids, tokenizer.special)
        found = fast(text, verbose=False).input_ids
        if found != wanted and not (unigram and sorted(found) == sorted(wanted)):
            raise CheckpointError(
                f"tokenizer: ids of the fast tokenizer differ from {tokenizer.path} on {text!r}: {found}, not {wanted}"
            )
        back = fast.decode(ids)
        if back != tokenizer.decode(ids):
            raise CheckpointError(
                f"tokenizer: the fast tokenizer decodes {text!r} as {back!r}, {tokenizer.path} does not"
            )
        checked += 1
    return checked


def _added(piece: str) -> AddedToken:
    return AddedToken(piece, normalized=False, special=True)


def _model(proto: Any) -> models.Model:
    spec = proto.trainer_spec
    if spec.model_type == spec.UNIGRAM:
        return models.Unigram(_scored_pieces(proto), unk_id=spec.unk_id, byte_fallback=spec.byte_fallback)
    if spec.model_type != spec.BPE:
        raise DataError("data.tokenizer: only BPE and unigram models can become a fast tokenizer")
    return models.BPE(
        vocab={piece.piece: index for index, piece in enumerate(proto.pieces)},
        merges=_merges(proto),
        unk_token=proto.pieces[spec.unk_id].piece,
        fuse_unk=True,
        byte_fallback=spec.byte_fallback,
    )


def _scored_pieces(proto: Any) -> list[tuple[str, float]]:
    """Pieces of a unigram model; byte pieces score so low that their names, `<0x0A>`, are never found in text."""
    byte = ModelProto.SentencePiece.BYTE
    never = min(piece.score for piece in proto.pieces) - 1000
    return [(piece.piece, never if piece.type == byte else piece.score) for piece in proto.pieces]


def _merges(proto: Any) -> list[tuple[str, str]]:
    """Every way to put a text piece together from two, best score first: what SentencePiece decides by scores."""
    normal = ModelProto.SentencePiece.NORMAL
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == normal}
    ranked = sorted(scores, key=lambda piece: -scores[piece])  # stable: equal scores stay in the order of ids
    return [
        (piece[:cut], piece[cut:])
        for piece in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]


def _normalizer(proto: Any, path: Path) -> normalizers.Normalizer:
    spec = proto.normalizer_spec
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        if spec.name.startswith("nmt_"):  # \r and \n are spaces there, but Precompiled takes both for one character
            steps.append(normalizers.Replace("\r\n", " \n"))
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(pattern), to) for pattern, to in ((r"\A +| +\z", ""), (" {2,}", " "))]
    if not spec.escape_whitespaces or proto.trainer_spec.treat_whitespace_as_suffix:
        raise DataError(
            f"data.tokenizer: {path} does not write a space as a prefix {SPACE!r}; it cannot become a fast tokenizer"
        )
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def _decoder(proto: Any) -> decoders.Decoder:
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if proto.normalizer_spec.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)
