"""Find the newest good checkpoint and put it into a trainer, whatever layout wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from pretrain.checkpoint.save import RNG
from pretrain.errors import CheckpointError
from pretrain.parallel import collectives
from pretrain.parallel.engine import Engine
from pretrain.state.index import MOMENTS, WEIGHT
from pretrain.state.manifest import Manifest
from pretrain.state.reader import Checkpoint, list_checkpoints
from pretrain.state.writer import rank_file
from pretrain.training.loop import Trainer

MAY_CHANGE = (
    "name",
    "run.",
    "parallel.",
    "batch.micro_batch_size",
    "data.train",  # the data's fingerprint decides, not its path
    "data.validation",
    "data.tokenizer",
    "data.glob",
    "data.skip_ranges",
    "train.max_steps",
    "train.stop_at_step",
    "train.precision",
    "train.activation_checkpointing",
    "train.threads",
    "evaluation.",
    "monitors.",
    "checkpoint.",
)
"""Keys (or sections, with a dot at the end) that may differ between sessions of a run; all others decide its result."""


def has_checkpoint(checkpoints: Path) -> bool:
    """Whether the folder holds any step folder with a manifest, good or not."""
    return any((folder / "manifest.json").exists() for folder in list_checkpoints(checkpoints))


def newest_good(checkpoints: Path) -> tuple[Checkpoint, list[str]]:
    """The newest checkpoint that is whole, and what is wrong with each newer one.

    Collective: the ranks divide the hashing.

    Raises:
        CheckpointError: none is whole.
    """
    problems: list[str] = []
    for folder in list_checkpoints(checkpoints):
        problem = _problem(folder)
        if problem is None:
            return Checkpoint(folder, verify="nothing"), problems
        problems.append(f"{folder}: {problem}")
    raise CheckpointError(
        f"{checkpoints}: no checkpoint is whole ({'; '.join(problems) or 'there is none'}); "
        "restore one, or start anew with another run.dir"
    )


def _problem(folder: Path) -> str | None:
    """What is wrong with a checkpoint, the same text on every rank."""
    share = (collectives.rank(), collectives.world_size())
    try:
        found = Manifest.read(folder).damaged(folder, share)
    except CheckpointError as error:
        found = str(error).removeprefix(f"{folder}: ")
    if not collectives.agree_any(found is not None):
        return None
    # The lowest rank that found something says what.
    first = int(-collectives.max_over(torch.tensor([-share[0] if found is not None else -share[1]])).item())
    return collectives.share_text(found or "", source=first)


def changed_keys(saved: dict[str, Any], current: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ and that may not change between sessions."""
    changed = []
    for key in sorted({*saved, *current}):
        path = f"{prefix}{key}"
        old, new = saved.get(key), current.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changed += changed_keys(old, new, f"{path}.")
        elif old != new and not path.startswith(MAY_CHANGE):
            changed.append(path)
    return changed


def fill_weights(engine: Engine, checkpoint: Checkpoint, moments: bool) -> None:
    """Copy weights, and moments if asked for, into the shards this rank owns, and publish them.

    Raises:
        CheckpointError: a parameter is missing or has another shape.
    """
    quantities = (WEIGHT, *MOMENTS) if moments else (WEIGHT,)
    for shard in engine.owned_shards(replicas=True):
        checkpoint.expect(shard.name, shard.shape)
        for quantity in quantities:
            checkpoint.read_into(getattr(shard, quantity), shard.name, shard.start, quantity)
    engine.publish_weights()


def resume(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Put everything back: weights, moments, step, data position, callbacks; cut the logs beyond it."""
    fill_weights(trainer.engine, checkpoint, moments=True)
    trainer.load_state_dict(checkpoint.training())
    _restore_rng(checkpoint)
    trainer.folder.cut_logs(trainer.progress.step)


def _restore_rng(checkpoint: Checkpoint) -> None:
    """torch's generator, where this rank existed at the save; nothing in training draws from it."""
    path = checkpoint.folder / rank_file(collectives.rank())
    if path.exists():
        with safe_open(path, "pt") as file:
            torch.set_rng_state(file.get_tensor(RNG))
