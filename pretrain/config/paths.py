"""Names and paths: which name a recipe's file gives its runs, and whether this system can spell a path."""

from __future__ import annotations

import errno
import os
import re
import sys
import zlib

from pretrain.errors import ConfigError

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
NAME_LENGTH = 200
"""Bytes; file systems allow 255 for a part of a path, and some are for endings."""


def as_text(argument: str) -> str:
    """An argument of the command line, or a part of a path, as the UTF-8 text it was, whatever the locale made of it.

    Raises:
        ConfigError: its bytes are not UTF-8.
    """
    try:
        return argument.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise ConfigError(f"{argument!r} is not UTF-8 text; write it, or rename the file, in UTF-8") from None


def name_of(stem: str, ending: str = "") -> str:
    """The name that a recipe's file gives its runs: what no name may hold becomes '-', too long a name is cut.

    Args:
        stem: the file's name without its suffix. A sum of it keeps names apart that would lose more than punctuation.
        ending: is added as it is.
    """
    room = NAME_LENGTH - len(ending)
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", stem) and len(stem) <= room:
        return stem + ending
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-").lstrip("._-")
    data = stem.encode("utf-8", "surrogateescape")
    if not name or not stem.isascii() or len(name) > room:
        name = f"{name[: room - 9] or 'run'}-{zlib.crc32(data):08x}"
    return name + ending


def check_path(key: str, path: str) -> None:
    """Look whether the system takes `path` at all; whether anything is there does not matter.

    Raises:
        ConfigError: naming `key`.
    """
    try:
        os.lstat(path)
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        raise ConfigError(
            f"{key} = {path!r} cannot be spelled in this locale ({encoding}); set LC_ALL=C.UTF-8 and unset PYTHONUTF8"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{key} = {path!r} is no path ({error})") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            shown = f"{path[:60]}...{path[-20:]}"
            raise ConfigError(f"{key} = {shown} is too long for this file system; choose a shorter path") from None
