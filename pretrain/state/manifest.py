"""The manifest: what a complete checkpoint consists of. A folder without one is not a checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pretrain.errors import CheckpointError
from pretrain.state.bounded import BadFile, open_regular, read_json
from pretrain.state.files import FileRecord, write_text
from pretrain.state.values import count, mapping, text

FORMAT = "kilolayer-checkpoint"
VERSION = 1
NAME = "manifest.json"
STEP_PREFIX = "step_"
"""Of the names of checkpoint folders."""


@dataclass(frozen=True)
class Manifest:
    """`layout` says how the run was laid out when it saved (for people; reading does not need it)."""

    step: int
    layout: dict[str, Any]
    files: dict[str, FileRecord]

    def write(self, folder: Path) -> None:
        body = {"format": FORMAT, "version": VERSION, **asdict(self)}
        body["sha256"] = _digest(body)
        write_text(folder / NAME, json.dumps(body, indent=1))

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises CheckpointError where there is no manifest, or one that is damaged or of another format."""
        path = folder / NAME
        if not os.path.lexists(path):
            raise CheckpointError(f"{folder}: not a checkpoint (it has no {NAME})")
        try:
            body = dict(mapping(read_json(path), "it"))
            if body.get("format") != FORMAT or type(body.get("version")) is not int or body["version"] != VERSION:
                raise CheckpointError(
                    f"{path}: format {_brief(body.get('format'))} {_brief(body.get('version'))}, "
                    f"this version reads {FORMAT} {VERSION}"
                )
            if body.pop("sha256", None) != _digest(body):
                raise ValueError("its own SHA-256 differs")
            files = {_plain(name): _record(name, entry) for name, entry in mapping(body.get("files"), "files").items()}
            return cls(step=count(body.get("step"), "step"), layout=_layout(body.get("layout")), files=files)
        except BadFile as error:
            raise CheckpointError(f"{path}: {error}; use another checkpoint") from None
        except ValueError as error:
            raise CheckpointError(f"{path}: damaged ({error}); use another checkpoint") from None

    def agrees(self, folder: Path) -> bool:
        """Whether the step in the folder's name, if there is one, is the manifest's."""
        number = folder.name.removeprefix(STEP_PREFIX)
        named = folder.name.startswith(STEP_PREFIX) and number.isdecimal()
        return not named or int(number) == self.step

    def only(self, name: str) -> Manifest:
        """The same for one of its files."""
        return replace(self, files={name: self.files[name]})

    def damaged(self, folder: Path, share: tuple[int, int] = (0, 1), hashes: bool = True) -> str | None:
        """The first thing wrong with the files, as one clause; None if all is well. Arguments as of `problems`."""
        return next(self.problems(folder, share, hashes), None)

    def problems(self, folder: Path, share: tuple[int, int] = (0, 1), hashes: bool = True) -> Iterator[str]:
        """All that is wrong with the files, one clause a file.

        Args:
            folder: the checkpoint.
            share: (i, n): look only at every n-th file from the i-th, so that n ranks divide the reading.
            hashes: compare contents, not only sizes.
        """
        first, stride = share
        for name in sorted(self.files)[first::stride]:
            path, expected = folder / name, self.files[name]
            try:
                found = _measured(path, expected.bytes if hashes else None)
            except BadFile as error:
                yield f"{name} {error}"
                continue
            if found.bytes != expected.bytes:
                yield f"{name} has {found.bytes} bytes instead of {expected.bytes}"
            elif hashes and found != expected:
                yield f"{name} differs from its SHA-256 in the manifest"


def _measured(path: Path, expected: int | None) -> FileRecord:
    """Size of a regular file and, where the size is the expected one, its SHA-256.

    Raises:
        BadFile: it is missing, is a link, a pipe or the like, or cannot be read.
    """
    handle = open_regular(path)
    try:
        size, digest = os.fstat(handle).st_size, ""
        if size == expected:
            with open(handle, "rb", closefd=False) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileRecord(size, digest)
    except OSError as error:
        raise BadFile(f"cannot be read ({error.strerror})") from None
    finally:
        os.close(handle)


def _plain(name: str) -> str:
    """The name of a file in the folder itself.

    Raises:
        ValueError: it leads elsewhere.
    """
    if name in ("", ".", "..", NAME) or not name.isprintable() or any(mark in name for mark in "/\\"):
        raise ValueError(f"file {_brief(name)} is no name of a file in its folder")
    return name


def _record(name: str, entry: Any) -> FileRecord:
    entry = mapping(entry, name)
    if entry.keys() != {"bytes", "sha256"}:
        raise ValueError(f"{name} has other keys than bytes and sha256")
    digest = text(entry["sha256"], f"{name}: sha256")
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError(f"{name}: sha256 is no SHA-256")
    return FileRecord(count(entry["bytes"], f"{name}: bytes"), digest)


COUNTS = ("processes", "pipeline_stages", "data_parallel_size", "micro_batches", "zero_stage")
PRECISIONS = ("fp32", "bf16", "fp16")


def _layout(value: Any) -> dict[str, Any]:
    layout = mapping(value, "layout")
    for key, item in layout.items():
        if not key.isprintable():
            raise ValueError("layout has a key that cannot be printed")
        if key in COUNTS:
            count(item, f"layout.{key}")
        elif key == "precision" and item not in PRECISIONS:
            raise ValueError(f"layout.precision is {_brief(item)}, not one of {', '.join(PRECISIONS)}")
        elif not isinstance(item, (str, int, float)):
            raise ValueError(f"layout.{key} is {_brief(item)}, which is no plain value")
    return dict(layout)


def _brief(value: Any) -> str:
    """A value from a file in few characters of one line."""
    return value if isinstance(value, str) and value.isprintable() and len(value) < 80 else ascii(value)[:80]


def _digest(body: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest's own content, in one canonical writing."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
