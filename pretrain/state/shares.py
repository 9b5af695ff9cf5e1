"""What each rank says of its share of a checkpoint under construction: a small file, since threads use no collective.

The records lie in SHARES below the temporary folder and go before the manifest is written.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from pretrain.state.files import FileRecord, naming

SHARES = "shares"
SECONDS_BETWEEN_LOOKS = (0.01, 0.5)
"""The first time, and at most."""
SECONDS_BETWEEN_SIZES = 1.0
PATIENCE = 300.0
"""Seconds without any growth in the folder after which the other ranks are taken for dead."""
PATIENCE_AT_END = 60.0
"""The same once this rank's session ends: a shared file system may show growth as late as half a minute."""


class ShareFailed(Exception):
    """A rank could not write its share, or is gone; one clause."""


def tell_done(folder: Path, rank: int, record: FileRecord) -> None:
    """Say that this rank's file is complete and flushed."""
    _tell(folder, rank, "done", json.dumps(asdict(record)))


def tell_failed(folder: Path, rank: int, reason: str) -> None:
    """Say that it never will be; without the reason where a full disk has no room for it."""
    try:
        _tell(folder, rank, "failed", reason)
    except OSError:
        (folder / SHARES / f"{rank:05d}.failed").touch()


def _tell(folder: Path, rank: int, outcome: str, text: str) -> None:
    path = folder / SHARES / f"{rank:05d}.{outcome}"
    draft = path.with_suffix(".draft")
    with naming(draft):
        draft.write_text(text, encoding="utf-8")
        draft.rename(path)


def wait_for_shares(
    folder: Path,
    ranks: int,
    ending: Callable[[], bool],
    patience: float = PATIENCE,
    patience_at_end: float = PATIENCE_AT_END,
) -> list[FileRecord]:
    """Every rank's record, by rank, once all have spoken, so that nobody writes any more when this returns or raises.

    Args:
        ending: whether this rank's session is about to end, so that a silent rank is not waited for as long.

    Raises:
        ShareFailed: a rank failed, or said nothing while nothing in the folder grew.
    """
    since = looked = time.monotonic()
    seen, pause = _growth(folder), SECONDS_BETWEEN_LOOKS[0]
    while missing := sorted(set(range(ranks)) - _outcomes(folder).keys()):
        time.sleep(pause)
        pause = min(2 * pause, SECONDS_BETWEEN_LOOKS[1])
        now = time.monotonic()
        if now - looked >= SECONDS_BETWEEN_SIZES:
            looked, before, seen = now, seen, _growth(folder)
            since = since if seen == before else now
        if now - since > (patience_at_end if ending() else patience):
            raise ShareFailed(f"rank {missing[0]}: nothing came from it for {now - since:.0f} s")
    records = []
    for rank, path in sorted(_outcomes(folder).items()):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".failed":
            raise ShareFailed(f"rank {rank}: {text or 'no reason came through'}")
        records.append(FileRecord(**json.loads(text)))
    return records


def _outcomes(folder: Path) -> dict[int, Path]:
    """Rank -> its record, of those that have spoken."""
    return {int(path.stem): path for path in (folder / SHARES).iterdir() if path.suffix in (".done", ".failed")}


def _growth(folder: Path) -> dict[str, int]:
    """Names and sizes of what lies in the folder, which tells whether anybody writes."""
    sizes = {}
    for path in (*folder.iterdir(), *(folder / SHARES).iterdir()):
        with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
            sizes[path.name] = path.stat().st_size
    return sizes
