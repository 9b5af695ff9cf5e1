"""Read small files that somebody else may have made: regular ones alone, bounded in bytes and depth."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

MIB = 2**20
TEXT_BYTES = 16 * MIB
"""A JSON file of this size becomes at most about 400 MiB in memory. Manifest and training state of 1000 layers have a
few hundred KiB."""
DEPTH = 64
"""Lists and mappings inside each other. What is written here has less than ten."""


class BadFile(Exception):
    """A file that cannot be used; one clause that begins with what is wrong, such as "is missing"."""


def open_regular(path: Path, follow: bool = False) -> int:
    """A descriptor for reading. Looks before it opens: a pipe would block, a device may give bytes without end.

    Args:
        path: the file.
        follow: whether it may be a symbolic link to a regular file.

    Raises:
        BadFile: it is missing, cannot be opened, or is no regular file.
    """
    try:
        mode = (path.stat() if follow else path.lstat()).st_mode
        if not stat.S_ISREG(mode):
            raise BadFile(f"is {_kind(mode)}, not a regular file")
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
        return os.open(path, flags)
    except FileNotFoundError:
        raise BadFile("is missing") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise BadFile(f"cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _kind(mode: int) -> str:
    kinds = {"a symbolic link": stat.S_ISLNK, "a folder": stat.S_ISDIR, "a pipe": stat.S_ISFIFO}
    return next((name for name, is_it in kinds.items() if is_it(mode)), "a device or socket")


def read_bounded(path: Path, limit: int = TEXT_BYTES, follow: bool = False) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Args:
        path: the file.
        limit: bytes.
        follow: whether it may be a symbolic link to a regular file.

    Raises:
        BadFile: it is no such file.
    """
    handle = open_regular(path, follow)
    try:
        with open(handle, "rb", closefd=False) as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise BadFile(f"cannot be read ({error.strerror})") from None
    finally:
        os.close(handle)
    if len(content) > limit:
        raise BadFile(f"has more than {limit:,} bytes, which is too large for what it is")
    return content


def parse_json(content: bytes) -> Any:
    """The value that JSON text stands for.

    Raises:
        BadFile: it is not JSON, or nested too deep.
    """
    try:
        value = json.loads(content)
    except RecursionError:
        raise BadFile("damaged (it is nested too deep)") from None
    except ValueError as error:
        raise BadFile(f"damaged ({type(error).__name__}: {error})") from None
    if _deeper(value, DEPTH):
        raise BadFile(f"damaged (it is nested deeper than {DEPTH})")
    return value


def _deeper(value: Any, depth: int) -> bool:
    """Whether lists and mappings lie deeper inside each other than `depth`; itself without recursion."""
    level = [value]
    for _ in range(depth):
        level = [item for outer in level for item in _inner(outer)]
        if not level:
            return False
    return True


def _inner(outer: Any) -> list[Any]:
    """The lists and mappings in a list or mapping."""
    items = outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ()
    return [item for item in items if isinstance(item, (dict, list))]


def read_json(path: Path, limit: int = TEXT_BYTES) -> Any:
    """What a JSON file holds, which is no link.

    Raises:
        BadFile: missing, too large, not JSON, or nested too deep.
    """
    return parse_json(read_bounded(path, limit))
