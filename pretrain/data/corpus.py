"""Corpora: named documents, read one after the other.

Three forms: `embedded` (the Python standard library's own source), a folder of text files, a .jsonl file whose lines
have a `text` field. A corpus is only ever streamed, so its size is not bounded by memory (a single document is).
Corpora of pairs stand in `data.parallel`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pretrain.data.hashing import digest, hash64
from pretrain.errors import DataError

EMBEDDED = "embedded"


@dataclass(frozen=True)
class Document:
    """One text under a name that is stable within its corpus and decides its split."""

    name: str
    text: str


def ignore(name: str) -> None:
    """Default of `documents(on_skip)`."""


class Corpus(Protocol):
    """What every form offers."""

    noun: ClassVar[str]
    """What a document is called."""
    skips: ClassVar[str]
    """What `on_skip` is told of."""
    named_by_text: ClassVar[bool]
    """Whether documents of the same name in two corpora have the same text (else it is a path or a number)."""

    @property
    def spec(self) -> str:
        """The value of data.train or data.validation it was opened from."""
        ...

    def documents(self, on_skip: Callable[[str], None] = ignore) -> Iterator[Document]:
        """Non-empty documents in a fixed order; `on_skip` is told the name of whatever is left out."""
        ...

    def sequences(self) -> Iterator[Document]:
        """The documents as a token file has them: each becomes one sequence that ends with eos."""
        ...

    def listing(self) -> str:
        """A cheap hash that changes when a file is added, removed or written to; nothing is read."""
        ...


@dataclass(frozen=True)
class FileCorpus:
    """Each file is a document, named by its path below `root`."""

    spec: str
    root: Path
    paths: tuple[Path, ...]

    noun: ClassVar[str] = "document"
    skips: ClassVar[str] = "files that are not UTF-8 text"
    named_by_text: ClassVar[bool] = False

    def documents(self, on_skip: Callable[[str], None] = ignore) -> Iterator[Document]:
        for path in self.paths:
            name = path.relative_to(self.root).as_posix()
            text = _decode(_read(path))
            if text is None:
                on_skip(name)
            elif text:
                yield Document(name, text)

    def sequences(self) -> Iterator[Document]:
        return self.documents()

    def listing(self) -> str:
        return digest(str(self.root.absolute()), *(stamp(path) for path in self.paths))


@dataclass(frozen=True)
class JsonLinesCorpus:
    """Each line is a document, named by its number; other fields than `text` are not looked at."""

    spec: str
    path: Path

    noun: ClassVar[str] = "document"
    skips: ClassVar[str] = "lines"  # never: a bad line is an error
    named_by_text: ClassVar[bool] = False

    def documents(self, on_skip: Callable[[str], None] = ignore) -> Iterator[Document]:
        try:
            with self.path.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip() and (text := self._text(number, line)):
                        yield Document(str(number), text)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})") from error

    def sequences(self) -> Iterator[Document]:
        return self.documents()

    def listing(self) -> str:
        return digest(stamp(self.path))

    def _text(self, number: int, line: bytes) -> str:
        try:
            text = json.loads(line)["text"]
            text.encode()  # refuses half a surrogate pair, which JSON can escape and UTF-8 cannot hold
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{self.path}:{number}: not a JSON object with a `text` string in UTF-8 ({reason(error)}); "
                "mend or remove the line"
            ) from error
        return text


@dataclass(frozen=True)
class CorpusFacts:
    """What one pass over a corpus finds.

    `lowest` and `highest` are the extremes of `rank_of` over the documents, which place the held-out split.
    """

    documents: int
    skipped: int
    characters: int
    lowest: int
    highest: int
    fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Split:
    """Documents whose rank is at most `threshold` are held out of training; -1 holds out none. So are `others`."""

    threshold: int
    others: frozenset[int] = frozenset()
    """Ranks of more documents."""

    def holds_out(self, name: str) -> bool:
        rank = rank_of(name)
        return rank <= self.threshold or rank in self.others


NOTHING_HELD_OUT = Split(-1)


def rank_of(name: str) -> int:
    """A document's place in 0 .. 2**64 - 1, by its name only: adding documents moves no other between the splits."""
    return hash64("split", name)


def held_out_split(facts: CorpusFacts, fraction: float, spec: str, noun: str = "document") -> Split:
    """The split that holds out about `fraction` of the documents, and at least one on each side.

    Raises:
        DataError: the corpus has a single document, or its documents all have the same name.
    """
    if facts.lowest == facts.highest:
        raise DataError(
            f"data.train: {spec} has a single {noun}, so none can be held out; give several, or set data.validation"
        )
    wanted = int(fraction * 2.0**64)
    return Split(min(max(wanted, facts.lowest), facts.highest - 1))


def open_corpus(spec: str, glob: str = "**/*", key: str = "data.train") -> Corpus:
    """Open a corpus without reading its documents.

    Args:
        spec: `embedded`, a folder, or a .jsonl file.
        glob: which files of a folder belong to it; hidden files and folders never do.
        key: the experiment's key that holds `spec`, for messages.

    Raises:
        DataError: there is no such corpus, or no file of it.
    """
    if spec == EMBEDDED:
        return _embedded()
    path = Path(spec).expanduser()
    if path.is_dir():
        return FileCorpus(spec, path, _folder_files(path, glob, key))
    if not path.exists():
        raise DataError(f"{key}: {spec} does not exist; give `embedded`, a folder of text files, or a .jsonl file")
    if path.suffix != ".jsonl":
        raise DataError(f"{key}: {spec} is a file but not .jsonl; give its folder with data.glob={path.name}")
    return JsonLinesCorpus(spec, path)


def scan(corpus: Corpus, key: str = "data.train") -> CorpusFacts:
    """Read the whole corpus once: check it, count it, hash its content.

    Raises:
        DataError: no document has any text, or a line or file is bad.
    """
    content = hashlib.sha256()
    skipped: list[str] = []
    documents = characters = highest = 0
    lowest = 2**64
    for document in corpus.documents(skipped.append):
        raw = document.text.encode()
        content.update(f"{document.name}\0{len(raw)}\0".encode(errors="surrogateescape"))
        content.update(raw)
        rank = rank_of(document.name)
        lowest, highest = min(lowest, rank), max(highest, rank)
        documents += 1
        characters += len(document.text)
    if documents == 0:
        said = f" (left out: {len(skipped)} {corpus.skips})" if skipped else ""
        raise DataError(f"{key}: {corpus.spec} is empty: no {corpus.noun} with text{said}; give a corpus with text")
    return CorpusFacts(documents, len(skipped), characters, lowest, highest, content.hexdigest())


def _embedded() -> FileCorpus:
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "__pycache__"}
    found: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in left_out]  # installed packages are not even looked at
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    files = tuple(sorted(path for path in found if path.is_file()))
    if not files:
        raise DataError(f"data.train: embedded finds no Python source below {root}; give a folder or a .jsonl file")
    return FileCorpus(EMBEDDED, root, files)


def _folder_files(root: Path, glob: str, key: str) -> tuple[Path, ...]:
    try:
        found = [path for path in root.glob(glob) if path.is_file()]
    except (ValueError, NotImplementedError, IndexError) as error:
        raise DataError(
            f"data.glob: {glob!r} is no pattern below a folder ({error}); give one like '**/*.txt'"
        ) from error
    shown = [p for p in found if not any(part.startswith(".") for part in p.relative_to(root).parts)]
    if not shown:
        raise DataError(f"{key}: {root} is empty: no file matches data.glob={glob}; give a folder with text files")
    return tuple(sorted(shown))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); make it readable or leave it out by data.glob"
        ) from error


def _decode(raw: bytes) -> str | None:
    """The text, line ends as they are; None for what is no text."""
    if b"\0" in raw:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return f"{path.absolute()}\0{status.st_size}\0{status.st_mtime_ns}"


def reason(error: Exception) -> str:
    return f"no field {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
