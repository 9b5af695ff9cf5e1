"""Write one checkpoint from all ranks: temporary folder, files, manifest, rename, pointer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from pretrain.errors import SaveFailed
from pretrain.parallel import collectives
from pretrain.parallel.engine import Engine
from pretrain.state.files import FileRecord, reached, replace_text
from pretrain.state.index import MOMENTS, WEIGHT, Box, Index, Piece
from pretrain.state.reader import LATEST, list_checkpoints, step_folder, step_of
from pretrain.state.writer import commit, rank_file, read_pieces, write_common_files, write_rank_file

TEMPORARY = ".saving_"
RNG = "rng_torch"


def save(
    checkpoints: Path,
    step: int,
    engine: Engine,
    training: dict[str, Any],
    layout: dict[str, Any],
    texts: dict[str, bytes],
) -> Path:
    """Save on all ranks; returns the folder. On return it is complete and `latest` names it.

    Args:
        checkpoints: RUN/checkpoints.
        step: names the folder.
        engine: gives the shards.
        training: the trainer's state.
        layout: for the manifest.
        texts: further files (config.yaml, tokenizer.model), written by rank 0.

    Raises:
        SaveFailed: on every rank, if any rank could not write (a full disk).
    """
    temporary, final = checkpoints / f"{TEMPORARY}{step:08d}", step_folder(checkpoints, step)
    try:
        _save(temporary, final, step, engine, training, layout, texts)
    except SaveFailed:
        if collectives.is_first():
            shutil.rmtree(temporary, ignore_errors=True)  # half a checkpoint would keep the disk full
        raise
    return final


def _save(
    temporary: Path,
    final: Path,
    step: int,
    engine: Engine,
    training: dict[str, Any],
    layout: dict[str, Any],
    texts: dict[str, bytes],
) -> None:
    checkpoints = final.parent
    _together(lambda: _begin(checkpoints, temporary), "make room")
    own = _together(lambda: _write_own(temporary, engine), "write")
    records = _gather_records(own)

    def complete() -> None:
        pieces = [piece for rank in range(collectives.world_size()) for piece in read_pieces(temporary, rank)]
        write_common_files(temporary, Index(pieces), training, texts)
        if final.exists():  # the same step saved again after a resume from an older one
            shutil.rmtree(final)
        commit(temporary, final, step, layout, records)
        replace_text(checkpoints / LATEST, f"{final.name}\n")
        reached("latest_moved")

    _together(complete if collectives.is_first() else lambda: None, "complete")


def prune(checkpoints: Path, step: int, keep_last: int) -> None:
    """Remove all but the newest `keep_last` checkpoints up to `step`, the one just saved.

    A removal that is cut short leaves no manifest behind.
    """

    def remove() -> None:
        kept = [folder for folder in list_checkpoints(checkpoints) if step_of(folder) <= step]
        for folder in kept[keep_last:]:
            (folder / "manifest.json").unlink(missing_ok=True)
            shutil.rmtree(folder)
        reached("pruned")

    _together(remove if collectives.is_first() else lambda: None, "remove an old one after")


def _begin(checkpoints: Path, temporary: Path) -> None:
    if collectives.is_first():
        for stale in checkpoints.glob(f"{TEMPORARY}*"):
            shutil.rmtree(stale)
        temporary.mkdir(parents=True)


def _write_own(folder: Path, engine: Engine) -> FileRecord:
    pieces, at = [], 0
    shards = list(engine.owned_shards())
    for shard in shards:
        pieces.append(Piece(shard.name, shard.shape, Box.whole(shard.shape), shard.start, shard.stop, at))
        at += shard.weight.numel()
    buffers = {quantity: torch.empty(at) for quantity in (WEIGHT, *MOMENTS)}
    for quantity, buffer in buffers.items():
        for piece, shard in zip(pieces, shards, strict=True):
            buffer[piece.at : piece.at + piece.numel].copy_(getattr(shard, quantity))
    buffers[RNG] = torch.get_rng_state()
    return write_rank_file(folder, collectives.rank(), pieces, buffers)


def _gather_records(own: FileRecord) -> dict[str, FileRecord]:
    rows = collectives.gather_rows(torch.tensor([own.bytes, *bytes.fromhex(own.sha256)], dtype=torch.int64))
    return {rank_file(rank): FileRecord(row[0], bytes(row[1:]).hex()) for rank, row in enumerate(rows.tolist())}


def _together(action: Any, doing: str) -> Any:
    """Run `action` on this rank, then fail on every rank if it failed on any."""
    problem, result = "", None
    try:
        result = action()
    except Exception as error:  # whatever it is (safetensors has errors of its own): the others must not wait for ever
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if reason := collectives.first_text(problem):
        raise SaveFailed(f"checkpoint: could not {doing} it ({reason}); see to the disk of run.dir")
    return result
