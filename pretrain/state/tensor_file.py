"""The safetensors layout, written and read without a second copy of the data.

8 bytes: length of the header, little-endian; the header: JSON, name -> dtype, shape, data_offsets, and __metadata__;
then the data, without gaps. Source: https://github.com/huggingface/safetensors#format. The library's own functions map
the file into memory, where its pages count as the process's, and leave the hash to a second reading.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pretrain.errors import CheckpointError
from pretrain.state.bounded import MIB, BadFile, open_regular, parse_json
from pretrain.state.files import FileRecord, flush, naming
from pretrain.state.values import count, mapping, sequence, text

DTYPES = {"F32": torch.float32, "U8": torch.uint8}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
CHUNK = 16 * 2**20
"""Bytes written and hashed at a time; hashlib and write() let other threads run meanwhile."""
HEADER_BYTES = 100 * MIB
"""The most that a header may have; the safetensors library's own bound is about the same."""
FLUSH_EVERY = 2**29
"""Bytes after which what was written is flushed, so that the last flush is short and dirty pages do not pile up."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> FileRecord:
    """Write contiguous CPU tensors and flush; hashed on the way.

    Raises:
        OSError: a full disk, or the like.
    """
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # data stays aligned
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in ordered:
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        entry = {"dtype": NAMES[tensors[name].dtype], "shape": list(tensors[name].shape), "data_offsets": [start, end]}
        header[name] = entry
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest, written, flushed = hashlib.sha256(), 0, 0
    with naming(path), path.open("wb", buffering=0) as file:
        parts = [memoryview(len(text).to_bytes(8, "little") + text)]
        for chunk in _chunks([*parts, *(_bytes(tensors[name]) for name in ordered if tensors[name].numel())]):
            digest.update(chunk)
            rest = chunk
            while rest.nbytes:  # one write() takes at most 2 GiB, and less where the disk is nearly full
                rest = rest[file.write(rest) :]
            written += chunk.nbytes
            if written - flushed >= FLUSH_EVERY:
                os.fsync(file.fileno())
                flushed = written
        flush(file)
    return FileRecord(written, digest.hexdigest())


def _bytes(tensor: Tensor) -> memoryview:
    """A contiguous CPU tensor's memory, not a copy; writing changes the tensor."""
    return memoryview(tensor.detach().view(-1).numpy()).cast("B")  # type: ignore[arg-type]


def _chunks(parts: list[memoryview]) -> Iterator[memoryview]:
    for part in parts:
        for start in range(0, part.nbytes, CHUNK):
            yield part[start : start + CHUNK]


class _Entry(NamedTuple):
    dtype: torch.dtype
    start: int
    """Of the file's bytes."""
    end: int
    numel: int

    @classmethod
    def of(cls, entry: Any, data: int) -> _Entry:
        """From a header's entry; the data begins at byte `data` of the file."""
        entry = mapping(entry, "an entry")
        if text(entry["dtype"], "dtype") not in DTYPES:
            raise ValueError("a dtype is none of " + ", ".join(DTYPES))
        dtype = DTYPES[entry["dtype"]]
        start, end = (count(place, "data_offsets") for place in sequence(entry["data_offsets"], "data_offsets"))
        numel = math.prod(count(extent, "shape") for extent in sequence(entry["shape"], "shape"))
        if end - start != numel * dtype.itemsize:
            raise ValueError(f"data from {start} to {end} for {numel} elements")
        return cls(dtype, data + start, data + end, numel)


def _entries(header: Mapping[str, Any], data: int, size: int) -> dict[str, _Entry]:
    """The tensors of a file of `size` bytes, whose data begins at byte `data` and has no gaps."""
    entries = {name: _Entry.of(entry, data) for name, entry in header.items()}
    at = data
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.end)):
        if entry.start != at:
            raise ValueError("its tensors overlap or leave a gap")
        at = entry.end
    if at != size:
        raise ValueError(f"its tensors end at byte {at} of {size}")
    return entries


def header_bytes(path: Path, limit: int = HEADER_BYTES) -> int:
    """Bytes that a file says its header takes, `limit` at most; 0 if it says nothing.

    Raises:
        BadFile: not a regular file, or it cannot be opened.
    """
    handle = open_regular(path)
    try:
        return min(int.from_bytes(os.pread(handle, 8, 0), "little"), limit)
    finally:
        os.close(handle)


class TensorFile:
    """A safetensors file, opened for reading ranges of flat tensors; only the header and what is asked for is read.

    Args:
        path: a regular file.
        header_limit: bytes that its header may have.

    Raises:
        CheckpointError: not such a file.
    """

    def __init__(self, path: Path, header_limit: int = HEADER_BYTES):
        self.path = path
        self._handle: int | None = None
        try:
            length = int.from_bytes(self._read(0, 8), "little")
            size = os.fstat(self._open()).st_size
            if length > min(size, header_limit):
                raise ValueError("its header is longer than " + ("the file" if length > size else "it may be"))
            header = dict(mapping(parse_json(self._read(8, length)), "it"))
            metadata = mapping(header.pop("__metadata__", {}), "__metadata__")
            self.metadata = {key: text(value, f"__metadata__: {key}") for key, value in metadata.items()}
            self._entries = _entries(header, 8 + length, size)
        except (BadFile, OSError, ValueError, LookupError) as error:
            self.close()
            reason = f"{type(error).__name__}: {error}" if isinstance(error, (OSError, LookupError)) else error
            raise CheckpointError(f"{path}: damaged, its header cannot be read ({reason})") from None

    def elements(self, name: str) -> int | None:
        """How many fp32 numbers tensor `name` has; None if it is not there, or is of another dtype."""
        entry = self._entries.get(name)
        return entry.numel if entry is not None and entry.dtype == torch.float32 else None

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def names(self) -> list[str]:
        return list(self._entries)

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise CheckpointError(f"{self.path}: it holds no {name!r}, only {', '.join(self.names())}")
        return self._entries[name]

    def read(self, name: str) -> Tensor:
        """One whole tensor, flat."""
        entry = self._entry(name)
        target = torch.empty(entry.numel, dtype=entry.dtype)
        self.read_into(target, name, 0)
        return target

    def read_into(self, target: Tensor, name: str, first: int) -> None:
        """Fill `target` (flat, any device and dtype) with elements [first, first + len) of tensor `name`.

        Raises:
            CheckpointError: the file does not hold them.
        """
        dtype, start, _, numel = self._entry(name)
        if first < 0 or first + target.numel() > numel:
            raise CheckpointError(f"{self.path}: damaged, {name!r} ends before what the index says")
        at = start + first * dtype.itemsize
        if target.device.type == "cpu" and target.dtype == dtype and target.is_contiguous():
            self._fill(target, at)
            return
        step = CHUNK // dtype.itemsize
        for low in range(0, target.numel(), step):
            part = torch.empty(min(step, target.numel() - low), dtype=dtype)
            self._fill(part, at + low * dtype.itemsize)
            target[low : low + part.numel()].copy_(part)

    def _fill(self, target: Tensor, at: int) -> None:
        if not target.numel():
            return
        rest = _bytes(target)
        while rest.nbytes:
            count = os.preadv(self._open(), [rest[: 2**30]], at)
            if not count:
                raise CheckpointError(f"{self.path}: damaged, it ends early")
            rest, at = rest[count:], at + count

    def _read(self, at: int, count: int) -> bytes:
        content = os.pread(self._open(), count, at)
        if len(content) != count:
            raise ValueError("it ends early")
        return content

    def _open(self) -> int:
        if self._handle is None:
            try:
                self._handle = open_regular(self.path)
            except BadFile as error:
                raise CheckpointError(f"{self.path}: {error}") from None
        return self._handle

    def close(self) -> None:
        """Give the handle back; a later read opens the file again."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        if os is not None:  # at the interpreter's exit modules go first
            self.close()
