"""Folders that are built once: by one process under a lock, in a temporary place, then renamed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from pretrain.errors import DataError
from pretrain.state.files import sync, sync_tree


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Return `target`, built by `build(folder)` if it does not exist; whoever comes meanwhile waits.

    `target` appears by one rename, after all its files are on the disk, so that it is complete whenever it exists,
    also after kill -9 or a power cut. The lock is the kernel's: it goes with the process that held it. What a killed
    build left behind is removed by the next one.

    Raises:
        DataError: the place cannot be written to.
        Exception: what `build` raises; nothing is left behind.
    """
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(f".{target.name}.lock")):
            if not target.is_dir():
                _build(target, build)
    except OSError as error:
        raise DataError(
            f"run.cache: {target} cannot be built ({error.strerror}); set run.cache to a folder with room"
        ) from error
    return target


def _build(target: Path, build: Callable[[Path], None]) -> None:
    # The lock may hold on one host only (some network file systems), so each host and process has its own place.
    host = socket.gethostname()
    for left_behind in target.parent.glob(f".{target.name}.{host}.*.unfinished"):
        shutil.rmtree(left_behind)
    unfinished = target.with_name(f".{target.name}.{host}.{os.getpid()}.unfinished")
    unfinished.mkdir()
    try:
        build(unfinished)
        sync_tree(unfinished)
        _publish(unfinished, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _publish(unfinished: Path, target: Path) -> None:
    try:
        unfinished.rename(target)
    except OSError:
        if not target.is_dir():  # else another host was first, with the same content
            raise
    sync(target.parent)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
