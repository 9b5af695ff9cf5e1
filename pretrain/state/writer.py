"""Write one rank's share of a checkpoint, and complete the whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pretrain.state.files import FileRecord, reached, record, sync, write_file, write_text
from pretrain.state.index import Index, Piece
from pretrain.state.manifest import NAME as MANIFEST
from pretrain.state.manifest import Manifest
from pretrain.state.tensor_file import TensorFile, write_tensors

INDEX = "index.json"
TRAINING = "training.json"
REPLACED = ".replaced_"


def rank_file(rank: int) -> str:
    return f"rank_{rank:05d}.safetensors"


def write_rank_file(folder: Path, rank: int, pieces: Sequence[Piece], buffers: dict[str, torch.Tensor]) -> FileRecord:
    """Write what `rank` owns to its one file and flush it, without a copy.

    Args:
        folder: the checkpoint under construction; exists.
        rank: number of the file.
        pieces: what the flat buffers hold; `at` counts from the buffers' start.
        buffers: "weight" and, where there is optimizer state, "exp_avg" and "exp_avg_sq": fp32, flat, all of one
            length; and any small tensors beside them (the generator's state, what monitors keep).

    Returns:
        Size and SHA-256 of the file.
    """
    header = json.dumps([[piece.name, list(piece.shape), piece.to_json()] for piece in pieces], separators=(",", ":"))
    reached("rank_file_begun")
    written = write_tensors(folder / rank_file(rank), buffers, {"pieces": header})
    reached("rank_file_written")
    return written


def read_pieces(folder: Path, rank: int) -> list[Piece]:
    """The pieces that `rank` wrote, from its file's own header."""
    name = rank_file(rank)
    file = TensorFile(folder / name)
    header = json.loads(file.metadata["pieces"])
    file.close()
    return [replace(Piece.from_json(n, tuple(shape), entry), file=name) for n, shape, entry in header]


def write_common_files(folder: Path, index: Index, training: dict[str, Any] | str, texts: dict[str, bytes]) -> None:
    """Index, training state (or its JSON) and the files that make the checkpoint complete in itself, flushed."""
    write_text(folder / INDEX, index.to_json())
    write_text(folder / TRAINING, training if isinstance(training, str) else json.dumps(training))
    for name, content in texts.items():
        write_file(folder / name, content)
    reached("common_files_written")


def commit(folder: Path, final: Path, step: int, layout: dict[str, Any], rank_files: dict[str, FileRecord]) -> None:
    """Write the manifest last and move the folder to its final name; from then on it is a checkpoint.

    An earlier one of that name (the same step saved again) is moved aside before, and removed after.
    """
    files = dict(rank_files)
    for path in folder.iterdir():
        if path.name not in files:
            files[path.name] = record(path)
    Manifest(step, layout, files).write(folder)
    reached("manifest_written")
    sync(folder)
    aside = final.with_name(f"{REPLACED}{final.name}")
    if final.exists():
        final.rename(aside)  # not removed: until the new one has its name, this is the newest there is
        reached("earlier_moved")
    folder.rename(final)
    reached("renamed")
    sync(final.parent)
    if aside.exists():
        remove_checkpoint(aside)


def put_back(checkpoints: Path) -> None:
    """After a crash between the two renames of a `commit`: the earlier checkpoint has its name again."""
    for aside in sorted(checkpoints.glob(f"{REPLACED}*")):
        final = aside.with_name(aside.name.removeprefix(REPLACED))
        if final.exists():
            remove_checkpoint(aside)
        else:
            aside.rename(final)


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint; its manifest goes first, so that a removal cut short leaves none behind.

    Of one that is a symbolic link the link goes: what it names lies elsewhere for a reason.
    """
    if folder.is_symlink():
        folder.unlink()
        return
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder)
