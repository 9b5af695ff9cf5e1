"""Parallel text: corpora whose documents are pairs of a source and its translation.

Three forms: `gettext` (the message catalogues of this machine), a .tsv file, a .jsonl file with the fields `source` and
`target`. They are streamed as other corpora are.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pretrain.data.catalogues import SYSTEM, Damaged, catalogue_paths, languages, read_catalogue
from pretrain.data.corpus import Document, ignore, reason, stamp
from pretrain.data.hashing import digest, hash64
from pretrain.errors import DataError

GETTEXT = "gettext"
MESSAGES = "en"
"""The language of the messages that catalogues translate."""
BETWEEN = "\x1e"  # "record separator": ends a line for str.splitlines, and does not occur in text
FORMS = "`gettext`, a .tsv file (source TAB target), or a .jsonl file with fields `source` and `target`"
NO_TEXT = re.compile(r"%\([^)]*\)[A-Za-z]|%[-+ #0-9.*$lhzjtqL']*[A-Za-z]|\{[^}]*\}|<[^>]*>")
"""Place holders and tags, whose letters are no words."""

NOT_SPOKEN = re.compile(r"[\W_]+")
"""What is neither letter nor digit."""


@dataclass(frozen=True)
class Pair:
    """A text in two languages."""

    source: str
    target: str

    @property
    def name(self) -> str:
        """What decides the split: the source's letters and digits, so that `Open` and `_Open...` lie on one side."""
        return NOT_SPOKEN.sub("", self.source.casefold()) or self.source

    @property
    def text(self) -> str:
        return f"{self.source}{BETWEEN}{self.target}"


@dataclass(frozen=True)
class ParallelCorpus(ABC):
    """Pairs as documents. The name is the source's, so all pairs of one source lie in the same split."""

    spec: str

    named_by_text: ClassVar[bool] = True
    noun: ClassVar[str] = "pair"
    skips: ClassVar[str] = "lines with an empty side"

    @abstractmethod
    def pairs(self, on_skip: Callable[[str], None] = ignore) -> Iterator[Pair]:
        """The pairs in a fixed order; `on_skip` is told what is left out (see `skips`)."""

    @abstractmethod
    def listing(self) -> str: ...

    def documents(self, on_skip: Callable[[str], None] = ignore) -> Iterator[Document]:
        for pair in self.pairs(on_skip):
            yield Document(pair.name, pair.text)

    def sequences(self) -> Iterator[Document]:
        """Source, target, source, target, ..."""
        for pair in self.pairs():
            yield Document(pair.name, pair.source)
            yield Document(pair.name, pair.target)


@dataclass(frozen=True)
class LinesCorpus(ParallelCorpus):
    """A pair a line, taken as it is; blank lines are nothing."""

    path: Path

    def pairs(self, on_skip: Callable[[str], None] = ignore) -> Iterator[Pair]:
        try:
            with self.path.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if not line.strip(b"\r\n"):
                        continue
                    pair = self._pair(number, line)
                    if pair.source.strip() and pair.target.strip():
                        yield pair
                    else:
                        on_skip(str(number))
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})") from error

    def listing(self) -> str:
        return digest("pairs", stamp(self.path))

    @abstractmethod
    def _pair(self, number: int, line: bytes) -> Pair: ...


class TabCorpus(LinesCorpus):
    """`source TAB target`; nothing is quoted or escaped."""

    def _pair(self, number: int, line: bytes) -> Pair:
        try:
            fields = line.decode().rstrip("\r\n").split("\t")
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path}:{number}: not UTF-8 ({error}); mend or remove the line") from error
        if len(fields) != 2:
            raise DataError(
                f"{self.path}:{number}: {len(fields)} fields between tabs instead of 2, source TAB target; "
                "mend or remove the line"
            )
        return Pair(*fields)


class JsonPairsCorpus(LinesCorpus):
    """A JSON object with the strings `source` and `target`; other fields are not looked at."""

    def _pair(self, number: int, line: bytes) -> Pair:
        try:
            fields = json.loads(line)
            pair = Pair(fields["source"], fields["target"])
            pair.source.encode(), pair.target.encode()  # half a surrogate pair can be escaped in JSON, not in UTF-8
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{self.path}:{number}: not a JSON object with `source` and `target` strings in UTF-8 "
                f"({reason(error)}); mend or remove the line"
            ) from error
        return pair


@dataclass(frozen=True)
class CatalogueCorpus(ParallelCorpus):
    """Messages of programs and their translations, each pair once.

    Two languages that are not the messages' own are paired through the messages that both translate. Left out: what is
    empty or the same in both languages, what has no word in one of them, and lists of translators. Blanks at the ends
    are cut off.
    """

    languages: tuple[str, str]
    catalogues: tuple[tuple[Path, ...], ...]
    """For each program the catalogue of each language but the messages' own, source first."""

    skips: ClassVar[str] = "catalogues that cannot be read"

    def pairs(self, on_skip: Callable[[str], None] = ignore) -> Iterator[Pair]:
        seen: set[int] = set()
        for paths in self.catalogues:
            try:
                found = list(self._program(paths))
            except (Damaged, OSError):
                on_skip(paths[0].name)
                continue
            for pair in found:
                identity = hash64(pair.source, pair.target)
                if identity not in seen:
                    seen.add(identity)
                    yield pair

    def listing(self) -> str:
        return digest(GETTEXT, *self.languages, *(stamp(path) for paths in self.catalogues for path in paths))

    def _program(self, paths: tuple[Path, ...]) -> Iterator[Pair]:
        """The pairs of one program's catalogues."""
        stacks = [{(m.context, m.form, m.text): m.translation for m in read_catalogue(path)} for path in paths]
        for message in stacks[0]:
            if all(message in stack for stack in stacks):
                translations = iter(stack[message] for stack in stacks)
                sides = [message[2] if name == MESSAGES else next(translations) for name in self.languages]
                pair = Pair(*(side.strip() for side in sides))
                if _is_translation(pair) and not _names_translators(message[2]):
                    yield pair


def open_pairs(spec: str, source: str = MESSAGES, target: str | None = None, key: str = "data.train") -> ParallelCorpus:
    """Open parallel text without reading it.

    Args:
        spec: `gettext` or `gettext:FOLDER`, a .tsv file, or a .jsonl file.
        source: language of the sources, for gettext.
        target: language of the targets, for gettext.
        key: the experiment's key that holds `spec`, for messages.

    Raises:
        DataError: there is no such file or language, or the form holds no pairs.
    """
    kind, _, root = spec.partition(":")
    if kind == GETTEXT:
        return _open_catalogues(spec, Path(root).expanduser() if root else SYSTEM, source, target, key)
    path = Path(spec).expanduser()
    form = {".tsv": TabCorpus, ".jsonl": JsonPairsCorpus}.get(path.suffix)
    if form is None:
        raise DataError(f"{key}: {spec} is no parallel text, which objective.kind = translation needs; give {FORMS}")
    if not path.is_file():
        raise DataError(f"{key}: {spec} does not exist or is no file; give {FORMS}")
    return form(spec, path)


def _open_catalogues(spec: str, root: Path, source: str, target: str | None, key: str) -> CatalogueCorpus:
    there = languages(root)
    if not there:
        raise DataError(
            f"{key}: {spec} finds no catalogue {root}/LANGUAGE/LC_MESSAGES/*.mo; give another folder as "
            "gettext:FOLDER, a .tsv file or a .jsonl file"
        )
    listed = " ".join(name for name in there if name != MESSAGES)
    if target is None:
        raise DataError(f"objective.target_language: {spec} needs it; {root} has {listed}")
    if source == target:
        raise DataError(f"objective.target_language: {target} is also objective.source_language; set two languages")
    for name, language in (("source_language", source), ("target_language", target)):
        if language not in (*there, MESSAGES):
            raise DataError(f"objective.{name}: {spec} has no catalogue in {language}; set one of {MESSAGES} {listed}")
    sides = [catalogue_paths(root, language) for language in (source, target) if language != MESSAGES]
    shared = [name for name in sides[0] if all(name in side for side in sides)]
    if not shared:
        raise DataError(f"{key}: {spec} has no program in both {source} and {target}; set one of them to {MESSAGES}")
    return CatalogueCorpus(spec, (source, target), tuple(tuple(side[name] for side in sides) for name in shared))


def _is_translation(pair: Pair) -> bool:
    return pair.source != pair.target and _has_word(pair.source) and _has_word(pair.target)


def _has_word(text: str) -> bool:
    return any(map(str.isalpha, NO_TEXT.sub("", text)))


def _names_translators(message: str) -> bool:
    """`translator-credits` and the like: by convention its "translation" is the translators' names."""
    return re.fullmatch(r"translator[-_ ]credits", message.strip().lower()) is not None
