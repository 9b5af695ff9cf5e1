"""Corpora that the Hugging Face datasets library left on the disk: data.train=hf:PATH, field `text`.

PATH is a folder of `Dataset.save_to_disk`, a folder of .parquet or .arrow files, or one such file. Nothing is
downloaded, nothing is copied into a cache.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pretrain.data.corpus import Document, ignore, stamp
from pretrain.data.hashing import digest
from pretrain.errors import DataError

PREFIX = "hf:"
FIELD = "text"
SUFFIXES = (".arrow", ".parquet")
STATE, SPLITS = "state.json", "dataset_dict.json"
"""By which a folder of `save_to_disk` is known: of a dataset, of a dictionary of them."""
ROWS = 256  # read at once

Rows = Iterator[list[Any]]


@dataclass(frozen=True)
class HfDatasetCorpus:
    """Each row is a document, named by its number over all files; other fields are not looked at.

    `parts` is a saved dataset's folder, or the files in order.
    """

    spec: str
    parts: tuple[Path, ...]

    noun: ClassVar[str] = "document"
    skips: ClassVar[str] = "rows"  # never: a bad row is an error
    named_by_text: ClassVar[bool] = False

    def documents(self, on_skip: Callable[[str], None] = ignore) -> Iterator[Document]:
        number = 0
        for part in self.parts:
            for rows in _rows(part):
                for text in rows:
                    number += 1
                    if text is not None and not isinstance(text, str):
                        raise DataError(
                            f"{part}: row {number}: `{FIELD}` is a {type(text).__name__}, not a string; "
                            f"make it one, or give a dataset whose field `{FIELD}` is text"
                        )
                    if text:
                        yield Document(str(number), text)

    def sequences(self) -> Iterator[Document]:
        return self.documents()

    def listing(self) -> str:
        files = [file for part in self.parts for file in ([part] if part.is_file() else sorted(part.rglob("*")))]
        return digest(*(stamp(file) for file in files if file.is_file()))


def open_hf_dataset(spec: str, glob: str, key: str) -> HfDatasetCorpus:
    """Open a dataset without reading its rows.

    Args:
        spec: `hf:` and a path.
        glob: which .parquet or .arrow files of a folder belong to it; hidden ones never do.
        key: the experiment's key that holds `spec`, for messages.

    Raises:
        DataError: there is none, or none that is one alone.
    """
    path = Path(spec.removeprefix(PREFIX)).expanduser()
    if not path.exists():
        raise DataError(f"{key}: {spec} does not exist; give a folder of Dataset.save_to_disk or of .parquet files")
    if (path / STATE).is_file():
        return HfDatasetCorpus(spec, (path,))
    if (path / SPLITS).is_file():
        splits = _splits(path / SPLITS)
        raise DataError(
            f"{key}: {spec} holds the splits {' and '.join(splits)}; give one of them, such as {spec}/{splits[0]}"
        )
    found = [path] if path.is_file() else sorted(file for file in path.glob(glob) if _shown(file, path))
    files = [file for file in found if file.suffix in SUFFIXES]
    kinds = sorted({file.suffix for file in files})
    if not files:
        raise DataError(
            f"{key}: {spec} holds no saved dataset and no .parquet or .arrow file that matches data.glob={glob}; "
            "give a folder of Dataset.save_to_disk or of .parquet files"
        )
    if len(kinds) > 1:
        raise DataError(
            f"{key}: {spec} holds both {' and '.join(kinds)} files; choose by data.glob, such as **/*.parquet"
        )
    return HfDatasetCorpus(spec, tuple(files))


def _shown(file: Path, root: Path) -> bool:
    return file.is_file() and not any(part.startswith(".") for part in file.relative_to(root).parts)


def _splits(path: Path) -> list[str]:
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["splits"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error


def _rows(part: Path) -> Rows:
    """The field's values, some rows at a time."""
    import pyarrow as pa

    read = _saved if part.is_dir() else _parquet if part.suffix == ".parquet" else _arrow
    try:
        yield from read(part)
    # datasets raises whatever its parsing runs into (TypeError, AttributeError, FileNotFoundError of a shard)
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _damaged(part, error) from error


def _saved(folder: Path) -> Rows:
    import datasets

    dataset = datasets.load_from_disk(str(folder))
    _check_field(folder, dataset.column_names)
    for rows in dataset.select_columns([FIELD]).iter(ROWS):
        yield rows[FIELD]


def _parquet(path: Path) -> Rows:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        _check_field(path, file.schema_arrow.names)
        for batch in file.iter_batches(ROWS, columns=[FIELD]):
            yield batch.column(FIELD).to_pylist()


def _arrow(path: Path) -> Rows:
    """Both of Arrow's formats: the stream, which datasets writes, and the file, which ends with a footer."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        _check_field(path, reader.schema.names)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
        for batch in batches:
            for start in range(0, batch.num_rows, ROWS):
                yield batch.column(FIELD).slice(start, ROWS).to_pylist()


def _check_field(part: Path, names: list[str]) -> None:
    if FIELD not in names:
        raise DataError(
            f"{part}: no field `{FIELD}` among {', '.join(names)}; rename the one that holds the text to `{FIELD}`"
        )


def _damaged(path: Path, error: Exception) -> DataError:
    said = " ".join(str(error).split())[:200] or type(error).__name__
    return DataError(f"{path}: is damaged or no dataset ({said}); write it again")
