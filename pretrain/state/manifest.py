"""The manifest: what a complete checkpoint consists of. A folder without one is not a checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pretrain.errors import CheckpointError
from pretrain.state.files import FileRecord, record, write_text

FORMAT = "kilolayer-checkpoint"
VERSION = 1
NAME = "manifest.json"


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
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            if body["format"] != FORMAT or body["version"] != VERSION:
                raise CheckpointError(
                    f"{path}: format {body['format']} {body['version']}, this version reads {FORMAT} {VERSION}"
                )
            if body.pop("sha256") != _digest(body):
                raise ValueError("its own SHA-256 differs")
            files = {name: FileRecord(**entry) for name, entry in body["files"].items()}
            return cls(step=body["step"], layout=body["layout"], files=files)
        except FileNotFoundError:
            raise CheckpointError(f"{folder}: not a checkpoint (it has no {NAME})") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path}: damaged ({type(error).__name__}: {error}); use another checkpoint"
            ) from None

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
            if not path.is_file():
                yield f"{name} is missing"
            elif path.stat().st_size != expected.bytes:
                yield f"{name} has {path.stat().st_size} bytes instead of {expected.bytes}"
            elif hashes and record(path) != expected:
                yield f"{name} differs from its SHA-256 in the manifest"


def _digest(body: dict[str, Any]) -> str:
    """SHA-256 of the manifest's own content, in one canonical writing."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
