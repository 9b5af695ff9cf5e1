"""What lies in a run's checkpoints folder, and whether it is whole; for people, without a process group."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pretrain.checkpoint.save import TEMPORARY
from pretrain.config.load import load_experiment
from pretrain.errors import CheckpointError, UserError
from pretrain.state.keep import Keep, prune, to_remove
from pretrain.state.manifest import NAME as MANIFEST
from pretrain.state.manifest import Manifest
from pretrain.state.reader import DAMAGED, PREFIX, ROLLED_BACK, complete_checkpoints, list_checkpoints, step_of
from pretrain.state.run_files import CHECKPOINTS, CONFIG
from pretrain.state.whole import Judgement
from pretrain.training.run_folder import RunFolder


@dataclass(frozen=True)
class Row:
    """One folder. `bytes` are those that lie there."""

    name: str
    time: str
    """When it was completed (or last changed), in local time."""
    bytes: int
    layout: str
    kept: str
    """Why it stays by the run's own rule."""
    problem: str
    """What is wrong with it; empty if it is whole as far as sizes tell."""


def checkpoints_of(run: Path) -> Path:
    """RUN/checkpoints.

    Raises:
        CheckpointError: there is none.
    """
    for folder in (run / CHECKPOINTS, run):
        if folder.name == CHECKPOINTS and folder.is_dir():
            return folder
    raise CheckpointError(f"{run}: not a run with checkpoints; expected RUN/{CHECKPOINTS}")


def survey(run: Path) -> list[Row]:
    """Newest first; then what is incomplete or set aside."""
    checkpoints = checkpoints_of(run)
    folders = list_checkpoints(checkpoints)
    keep = _keep_of(checkpoints.parent)
    complete = [step_of(folder) for folder in complete_checkpoints(checkpoints)]
    why = keep.why(complete) if keep else {}
    found = [(folder, why.get(step_of(folder), ""), "") for folder in folders]
    for folder in sorted(checkpoints.glob(f"{DAMAGED}{PREFIX}*"), reverse=True):
        found.append((folder, "", "damaged, set aside"))
    for folder in sorted(checkpoints.glob(f"{ROLLED_BACK}{PREFIX}*"), reverse=True):
        found.append((folder, "", "rolled back: the run went on from an earlier one"))
    for folder in sorted(checkpoints.glob(f"{TEMPORARY}*")):
        found.append((folder, "", "incomplete: being written, or its session was killed"))
    rows = []
    for folder, kept, problem in found:
        try:
            row = _row(folder, kept, problem)
        except FileNotFoundError:  # a session that is at work has removed it meanwhile
            continue
        if folder.exists():
            rows.append(row)
    return rows


def _row(folder: Path, kept: str, problem: str = "") -> Row:
    layout: dict[str, Any] = {}
    judgement = Judgement(folder, "presence")
    if not problem and (found := next(judgement.problems(), None)) is not None:
        problem = f"damaged: {found}"
    with contextlib.suppress(CheckpointError):
        layout = Manifest.read(folder).layout
    stamp = folder / MANIFEST if (folder / MANIFEST).exists() else folder
    when = datetime.fromtimestamp(stamp.stat().st_mtime).astimezone().isoformat(" ", "seconds")
    size = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
    return Row(folder.name, when, size, _layout(layout), kept, problem)


def _layout(layout: dict[str, Any]) -> str:
    """A layout in a few words."""
    if "processes" not in layout:
        return ", ".join(key for key, value in layout.items() if value is True)
    words = [f"{layout['processes']} processes" if layout["processes"] != 1 else "1 process"]
    if layout.get("pipeline_stages", 1) > 1:
        words.append(f"{layout['pipeline_stages']} stages")
    if "zero_stage" in layout:
        words.append(f"ZeRO-{layout['zero_stage']}")
    return " ".join([*words, *([layout["precision"]] if "precision" in layout else [])])


def _keep_of(run: Path) -> Keep | None:
    """The rule that the run itself keeps by; None where its config.yaml cannot be read."""
    try:
        section = load_experiment(str(run / CONFIG)).checkpoint
    except UserError:
        return None
    return Keep(section.keep_last, section.keep_every)


def verify(path: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each checkpoint of a run (newest first), or the one at `path`, with all that is wrong with it, hashes compared.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    folders = [path] if os.path.lexists(path / MANIFEST) or path.name.startswith(PREFIX) else None
    if folders is None:
        folders = list_checkpoints(checkpoints_of(path))
    if not folders:
        raise CheckpointError(f"{path}: it holds no checkpoint")
    for folder in folders:
        yield folder, list(Judgement(folder).problems())


def prune_run(run: Path, keep: Keep, dry_run: bool) -> list[Path]:
    """Remove what `keep` leaves out, or only say what that would be.

    Raises:
        CheckpointError: no checkpoints folder.
        UserError: a session writes in the run's folder.
    """
    checkpoints = checkpoints_of(run)
    if dry_run:
        return to_remove(checkpoints, keep)
    lock = RunFolder(checkpoints.resolve().parent, writes=True)
    lock.acquire(grace=0.0, patience=0.0)
    try:
        return prune(checkpoints, keep)
    finally:
        lock.release()
