"""Token files: Megatron-LM's memory-mapped `.bin` / `.idx` pair, one sequence a document.

Little-endian. `.bin`: the token ids one after the other. `.idx`: `MMIDIDX\\0\\0`, uint64 version 1, uint8 dtype code,
uint64 sequences S, uint64 documents + 1, int32 length[S], int64 byte pointer[S], int64 document index[documents + 1],
and optionally int8 mode[S], which is not used here.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from pretrain.errors import DataError
from pretrain.state.files import flush

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
# Codes 6 and 7 are left out: forks of Megatron give them different types.
DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
UINT16_VOCABULARY = 65_500


def dtype_code(vocab_size: int) -> int:
    """Code of the smallest type Megatron uses for a vocabulary: uint16 below 65,500 pieces, else int32."""
    return 8 if vocab_size < UINT16_VOCABULARY else 4


def bin_path(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".bin")


def idx_path(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".idx")


class TokenFile:
    """A token file, opened without reading the tokens.

    Attributes:
        tokens: [n] read-only memory map of all tokens, in the file's dtype.
        lengths: [S] int32, tokens of each sequence.
        documents: number of documents.

    Args:
        prefix: path without `.bin` and `.idx`.

    Raises:
        DataError: missing, damaged or cut off, or of a dtype code that is not safe to read.
    """

    def __init__(self, prefix: str | Path):
        self.prefix = Path(prefix)
        dtype, self.lengths, pointers, document_index = _read_index(idx_path(self.prefix))
        self.documents = len(document_index) - 1
        total = int(self.lengths.sum(dtype=np.int64))
        ends = np.cumsum(self.lengths, dtype=np.int64) * dtype.itemsize
        if (self.lengths < 0).any() or not np.array_equal(pointers, np.concatenate([[0], ends[:-1]])[: len(ends)]):
            raise _damaged(idx_path(self.prefix), "its pointers do not follow from its lengths")
        self.tokens = _map_tokens(bin_path(self.prefix), dtype, total)

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.tokens)


class TokenWriter:
    """Writes a token file as a stream; memory grows by 4 bytes a document. Use as a context manager.

    Both files are flushed to the disk when the block ends; the index is written last, so a pair that lacks it is not
    taken for complete.

    Args:
        prefix: path without `.bin` and `.idx`.
        vocab_size: decides the dtype.
    """

    def __init__(self, prefix: str | Path, vocab_size: int):
        self.prefix = Path(prefix)
        self.code = dtype_code(vocab_size)
        self._dtype = np.dtype(DTYPES[self.code])
        self._lengths = array("i")
        self._open = 0
        self._bin = bin_path(self.prefix).open("wb")

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._bin.close()

    def append(self, ids: Sequence[int] | np.ndarray) -> None:
        """Add tokens to the document that is being written.

        Raises:
            ValueError: an id that the dtype cannot hold.
        """
        wide = np.asarray(ids, dtype=np.int64)
        tokens = wide.astype(self._dtype)
        if not np.array_equal(tokens, wide):
            raise ValueError(f"token ids must fit {self._dtype}, found {wide.min()} .. {wide.max()}")
        self._bin.write(tokens.tobytes())
        self._open += len(tokens)

    def end_document(self) -> None:
        """Close the document; what is appended next belongs to the next one."""
        self._lengths.append(self._open)
        self._open = 0

    def _finish(self) -> None:
        if self._open:
            self.end_document()
        flush(self._bin)
        lengths = np.frombuffer(self._lengths, dtype=np.int32) if len(self._lengths) else np.empty(0, np.int32)
        ends = np.cumsum(lengths, dtype=np.int64) * self._dtype.itemsize
        pointers = np.concatenate([[0], ends[:-1]])[: len(ends)]
        with idx_path(self.prefix).open("wb") as index:
            index.write(HEADER.pack(MAGIC, VERSION, self.code, len(lengths), len(lengths) + 1))
            index.write(lengths.astype("<i4").tobytes())
            index.write(pointers.astype("<i8").tobytes())
            index.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())
            flush(index)


def _read_index(path: Path) -> tuple[np.dtype, np.ndarray, np.ndarray, np.ndarray]:
    """dtype of the tokens, length [S], byte pointer [S], document index [documents + 1]."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); build the tokens again") from error
    if len(raw) < HEADER.size:
        raise _damaged(path, "it is cut off")
    magic, version, code, sequences, documents = HEADER.unpack_from(raw)
    if magic != MAGIC or version != VERSION:
        raise DataError(
            f"{path}: is no Megatron index of version {VERSION}; build it with tools/prepare_data.py tokens"
        )
    if code not in DTYPES:
        known = ", ".join(map(str, DTYPES))
        raise DataError(f"{path}: dtype code {code} means different types in different programs; write it with {known}")
    needed = HEADER.size + sequences * 12 + documents * 8
    if len(raw) not in (needed, needed + sequences) or documents < 1:
        raise _damaged(path, f"{len(raw)} bytes instead of {needed}")
    at = HEADER.size
    lengths = np.frombuffer(raw, "<i4", sequences, at)
    pointers = np.frombuffer(raw, "<i8", sequences, at + 4 * sequences)
    document_index = np.frombuffer(raw, "<i8", documents, at + 12 * sequences)
    return np.dtype(DTYPES[code]), lengths, pointers, document_index


def _map_tokens(path: Path, dtype: np.dtype, total: int) -> np.ndarray:
    try:
        size = path.stat().st_size
        if size != total * dtype.itemsize:
            raise _damaged(path, f"{size} bytes, but its index says {total * dtype.itemsize}")
        return np.memmap(path, dtype=dtype, mode="r") if total else np.empty(0, dtype)  # no empty file can be mapped
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); build the tokens again") from error


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path}: is damaged ({why}); remove its folder to have it built again")
