"""From a checkpoint of ours to a folder that `engine.load_checkpoint` of DeepSpeed loads as a universal checkpoint.

DeepSpeed needs ZeRO 1, 2, 3 or its BF16 optimizer for that, and {"checkpoint": {"load_universal": true}}.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pretrain.checkpoint.universal_folder import (
    FILES,
    LATEST_UNIVERSAL,
    MODEL_STATES,
    MODEL_STATES_ZERO3,
    OPTIMIZER_STATE,
    OWN,
    PARAM,
    STEP,
    ZERO,
)
from pretrain.checkpoint.universal_names import PLAIN_ENGINE, PREFIX, STAGES, deepspeed_names, spec_of
from pretrain.config.load import load_experiment
from pretrain.data.prepare import build_objective, wanted_sentinels, wants_mask
from pretrain.data.tokenizer import Tokenizer
from pretrain.errors import CheckpointError, SaveFailed, UserError
from pretrain.models.layers import ModelSpec
from pretrain.state.index import MOMENTS, WEIGHT
from pretrain.state.reader import Checkpoint, resolve_checkpoint
from pretrain.state.run_files import CONFIG, TOKENIZER
from pretrain.state.writer import TRAINING

FORMAT_VERSION = 0.4
"""UNIVERSAL_CHECKPOINT_VERSION_VALUE of the DeepSpeed whose format this is."""
MOST_GROUPS = 256
"""Parameter groups that an engine may have. DeepSpeed pairs its groups with the file's and leaves the rest unloaded
without a word; an entry without values keeps the engine's own."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    tag: str
    step: int
    parameters: int
    elements: int
    files: int
    moments: bool


def to_deepspeed(source: Path, out: Path, naming: str = PREFIX, prefix: str = PLAIN_ENGINE) -> Exported:
    """Write a checkpoint as a universal checkpoint, verified first, under a temporary name that is renamed at the end.

    Args:
        source: a checkpoint, or a run (then its newest one).
        out: folder to make; `engine.load_checkpoint(out)` reads it.
        naming: how DeepSpeed's engine names the parameters, see universal_names.
        prefix: what stands before a canonical name where `naming` is "prefix".

    Raises:
        CheckpointError: none there, damaged, or without the config that the naming needs.
        UserError: `out` exists.
        SaveFailed: it could not be written (a full disk).
    """
    checkpoint = Checkpoint(resolve_checkpoint(source))
    refuse_existing(out)
    spec = None if naming == PREFIX else _spec(checkpoint)
    names = deepspeed_names(checkpoint.index.names(), naming, PLAIN_ENGINE if naming == STAGES else prefix, spec)
    if bad := next((name for name in names.values() if "/" in name or name.startswith(".")), None):
        raise UserError(f"--prefix {prefix}: {bad} cannot be the name of a folder; give one such as {PLAIN_ENGINE}")
    with drafted(out) as draft:
        return _write(checkpoint, draft, out, names)


def _write(checkpoint: Checkpoint, draft: Path, out: Path, names: dict[str, str]) -> Exported:
    moments = all(checkpoint.has(moment) for moment in MOMENTS)
    steps = checkpoint.training().get("optimizer_steps", checkpoint.step)
    tag = f"step_{checkpoint.step:08d}"
    folder = draft / tag
    step_file = _pickled(torch.tensor(float(steps)))
    quantities = (WEIGHT, *MOMENTS) if moments else (WEIGHT,)
    elements = 0
    for ours, theirs in bar(names.items(), "to universal", len(names)):
        place = folder / ZERO / theirs
        place.mkdir(parents=True)
        for quantity in quantities:
            value = checkpoint.read(ours, quantity)
            (place / FILES[quantity]).write_bytes(_pickled({PARAM: value}))
        if moments:
            (place / STEP).write_bytes(step_file)
        elements += value.numel()
    shapes = OrderedDict((theirs, torch.Size(checkpoint.index.shape(ours))) for ours, theirs in names.items())
    states = _pickled(_model_states(checkpoint, shapes))
    for name in (MODEL_STATES, MODEL_STATES_ZERO3):
        (folder / name).write_bytes(states)
    (folder / ZERO / OPTIMIZER_STATE).write_bytes(_pickled(_optimizer_state(steps)))
    (folder / OWN).mkdir()
    for name in (CONFIG, TOKENIZER, TRAINING):
        if name in checkpoint.manifest.files:
            shutil.copyfile(checkpoint.folder / name, folder / OWN / name)
    (draft / LATEST_UNIVERSAL).write_text(tag)  # DeepSpeed strips nothing but white space
    files = sum(1 for path in draft.rglob("*") if path.is_file())
    return Exported(out, tag, checkpoint.step, len(names), elements, files, moments)


def _model_states(checkpoint: Checkpoint, shapes: OrderedDict[str, torch.Size]) -> dict[str, Any]:
    """The counters that DeepSpeed's engine takes up. The weights are in zero/ alone."""
    progress = checkpoint.training().get("progress", {})
    step, skipped = checkpoint.step, progress.get("skipped", 0)
    # One for DeepSpeed's schedulers (the last is a batch's number from 0), three for torch's (LambdaLR pops the list).
    scheduler = {"last_batch_iteration": step - 1, "last_epoch": step, "_step_count": step + 1, "lr_lambdas": []}
    return {
        "module": {},
        "optimizer": None,
        "lr_scheduler": scheduler,
        "param_shapes": [shapes],
        "global_steps": step + skipped,
        "skipped_steps": skipped,
        "global_samples": progress.get("samples", 0),
        "dp_world_size": 1,
        "mp_world_size": 1,
        "ds_config": {},
        "ds_version": version("deepspeed"),
        "universal_checkpoint_info": {"universal_checkpoint_version": FORMAT_VERSION},
    }


def _optimizer_state(steps: int) -> dict[str, Any]:
    """For ZeRO-1 and 2 the groups, for ZeRO-3 what lies below optimizer_state_dict."""
    groups: list[dict[str, Any]] = [{"params": []} for _ in range(MOST_GROUPS)]
    state = {0: {"step": torch.tensor(float(steps))}}
    return {
        "param_groups": groups,
        "optimizer_state_dict": {"state": state, "param_groups": groups},
        "ds_version": version("deepspeed"),
    }


def _pickled(value: Any) -> bytes:
    """As torch.save writes it; through memory, since a full disk makes torch.save itself raise what nobody can read."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _spec(checkpoint: Checkpoint) -> ModelSpec:
    """The model of a checkpoint, from its config and tokenizer."""
    folder = checkpoint.folder
    for name in (CONFIG, TOKENIZER):
        if name not in checkpoint.manifest.files:
            raise CheckpointError(f"{folder}: it has no {name}, which this naming needs; leave out --names")
    experiment = load_experiment(str((folder / CONFIG).resolve()))
    tokenizer = Tokenizer.load(folder / TOKENIZER, wanted_sentinels(experiment), wants_mask(experiment))
    return spec_of(experiment, tokenizer.vocab_size, build_objective(experiment, tokenizer.special))


def refuse_existing(out: Path) -> None:
    if os.path.lexists(out):
        raise UserError(f"{out}: exists already; give a folder to make")


def bar(items: Any, what: str, total: int) -> Any:
    """A progress bar over parameters, where there is a terminal."""
    return tqdm(items, desc=what, total=total, unit="parameter", disable=None, leave=False)


@contextmanager
def drafted(out: Path, finish: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` when the block ends, or goes when it fails.

    Args:
        out: does not exist.
        finish: moves the draft to `out`; default: flush and rename.

    Raises:
        SaveFailed: a file could not be written.
    """
    draft = out.parent / f".{out.name}.{os.getpid()}.tmp"
    try:
        draft.mkdir(parents=True)
        yield draft
        if finish is None:
            os.sync()  # one call: a thousand layers have tens of thousands of files
            draft.rename(out)
        else:
            finish(draft)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO):
            raise
        raise SaveFailed(f"{out}: could not be written ({error.strerror}); nothing is left of it") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
