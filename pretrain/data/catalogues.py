"""Message catalogues: the .mo files of GNU gettext, and the languages that a folder of them has.

Format: the manual of GNU gettext, "The Format of GNU MO Files". The files are read here and not by the standard
library's `gettext.GNUTranslations`, which forgets the plural of each message and refuses files whose header is not
UTF-8; the plural rule is evaluated by that module.
"""

from __future__ import annotations

import gettext
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

SYSTEM = Path("/usr/share/locale")
FOLDER = "LC_MESSAGES"
MAGIC = 0x950412DE
CONTEXT_END, FORM_END = b"\x04", b"\x00"
MANY = range(2, 101)
"""The numbers that vote on which plural form stands for "several"."""

PluralRule = Callable[[int], int]


class Damaged(ValueError):
    """A file that is no catalogue, is cut off, or is not in the encoding it states."""


@dataclass(frozen=True)
class Message:
    """A text and its translation. `context` and `form` tell messages with the same text apart."""

    context: str
    form: int
    text: str
    translation: str


def languages(root: Path) -> list[str]:
    """Names of the folders below `root` that have catalogues, sorted."""
    return sorted({path.parents[1].name for path in root.glob(f"*/{FOLDER}/*.mo")})


def catalogue_paths(root: Path, language: str) -> dict[str, Path]:
    """The catalogues of a language by the name of their program, sorted."""
    return {path.stem: path for path in sorted((root / language / FOLDER).glob("*.mo"))}


def read_catalogue(path: Path) -> list[Message]:
    """Messages in the file's order, without its header. Of plural forms, two: that of 1, and that of most numbers.

    Raises:
        Damaged: not a catalogue that can be read.
        OSError: not a file that can be read.
    """
    raw = path.read_bytes()
    try:
        entries = list(_entries(raw))
        header = next((value for identity, value in entries if not identity), b"")
        charset, rule = _charset(header), _plural_rule(header)
        return [
            message
            for identity, value in entries
            if identity
            for message in _messages(identity.decode(charset), value.decode(charset), rule)
        ]
    except (struct.error, ValueError, LookupError, ArithmeticError) as error:
        raise Damaged(f"{path}: {error}") from error


def _entries(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(msgid, msgstr) as they stand in the file."""
    order = "<" if raw[:4] == struct.pack("<I", MAGIC) else ">"
    magic, version, count, ids_at, values_at = struct.unpack_from(f"{order}5I", raw)
    if magic != MAGIC or version >> 16 > 1:
        raise ValueError("no catalogue of a known version")
    for index in range(count):
        yield _string(raw, order, ids_at + 8 * index), _string(raw, order, values_at + 8 * index)


def _string(raw: bytes, order: str, at: int) -> bytes:
    length, start = struct.unpack_from(f"{order}2I", raw, at)
    if start + length > len(raw):
        raise ValueError("it is cut off")
    return raw[start : start + length]


def _charset(header: bytes) -> str:
    stated = re.search(rb"charset=([\w.:-]+)", header)
    return stated[1].decode() if stated else "utf-8"


def _plural_rule(header: bytes) -> PluralRule:
    """Which form a number takes; that of English where the header states none that can be read."""
    stated = re.search(rb"plural=([^;\n]+)", header)
    try:
        return gettext.c2py((stated[1] if stated else b"n != 1").decode())
    except ValueError:
        return gettext.c2py("n != 1")


def _messages(identity: str, value: str, rule: PluralRule) -> Iterator[Message]:
    context, _, text = identity.rpartition(CONTEXT_END.decode())
    singular, *plural = text.split(FORM_END.decode())
    forms = value.split(FORM_END.decode())
    if not plural:
        yield Message(context, 0, singular, forms[0])
        return
    several = Counter(rule(number) for number in MANY).most_common(1)[0][0]
    for form, (text, index) in enumerate(((singular, rule(1)), (plural[0], several))):
        if index < len(forms):
            yield Message(context, form, text, forms[index])
