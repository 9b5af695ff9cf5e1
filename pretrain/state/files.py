"""Durable files: written under a temporary name, flushed to the disk, then renamed into place."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
CURE = "make room on that disk"


@dataclass(frozen=True)
class FileRecord:
    """What the manifest says of a file."""

    bytes: int
    sha256: str


def reached(point: str) -> None:
    """Called by name at every write point of a save. Does nothing; fault tests replace it to kill the process."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError of the block names a file (a write to an open one does not) and what helps where a disk is full.

    Args:
        path: the file that is named where the error names none.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        said = error.strerror or os.strerror(error.errno)
        if error.errno in NO_ROOM and CURE not in said:
            said = f"{said}, {CURE}"
        raise OSError(error.errno, said, error.filename or str(path), None, error.filename2) from error


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, so that a write or a rename in it survives a power cut."""
    with naming(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flush all files and folders of a tree."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def flush(file: IO[bytes]) -> None:
    """Flush what was written to an open file."""
    file.flush()
    os.fsync(file.fileno())


def write_file(path: Path, content: str | bytes) -> None:
    """Write and flush; the caller renames the folder it stands in."""
    with naming(path), path.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        flush(file)


def write_text(path: Path, text: str) -> None:
    """Write and flush a text."""
    write_file(path, text)


def replace_file(path: Path, content: str | bytes) -> None:
    """Put `content` at `path` atomically: a reader sees the old content or the new one.

    Raises:
        OSError: it could not be written; the old content stays, and nothing else is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path):
        try:
            write_file(temporary, content)
            temporary.replace(path)
        except BaseException as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            if isinstance(error, OSError):
                error.filename, error.filename2 = str(path), None  # the user knows that one
            raise
        sync(path.parent)


def replace_text(path: Path, text: str) -> None:
    """Put a text at `path` atomically."""
    replace_file(path, text)


def record(path: Path) -> FileRecord:
    """Size and SHA-256 of a file as it is read back."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(path.stat().st_size, digest)
