"""From a checkpoint to a folder that transformers loads as a native class: weights, tokenizer, configs, card."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pretrain import __version__
from pretrain.errors import UserError
from pretrain.hf import mapping
from pretrain.hf.card import model_card
from pretrain.hf.hosts import Host, host_for
from pretrain.hf.quiet import quiet
from pretrain.hf.tokenizer import fast_tokenizer
from pretrain.hf.trained import TrainedModel
from pretrain.hf.verify import Verification, record
from pretrain.hf.verify import verify as verify_folder
from pretrain.state.files import sync, write_text
from pretrain.state.run_files import TOKENIZER

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ORIGIN = "kilolayer.json"
FORMAT = "kilolayer-export"


@dataclass(frozen=True)
class ExportReport:
    """What was written where; `verification` is None where it was switched off."""

    folder: Path
    host: str
    step: int
    parameters: int
    verification: Verification | None


def export(
    source: Path,
    out: Path,
    dtype: str = "float32",
    max_shard_size: str = "5GB",
    verify: bool = True,
    overwrite: bool = False,
    license_name: str = "other",
) -> ExportReport:
    """Convert a checkpoint, verify the result, and only then put it at `out`.

    Args:
        source: a checkpoint, or a run (then its newest one).
        out: folder to make; must not exist, be empty, or, with `overwrite`, be an earlier export.
        dtype: of the written weights: float32, bfloat16, float16. The fold is computed in fp64 and cast last.
        max_shard_size: largest size of one safetensors file, e.g. "5GB".
        verify: compare with the trained model; the differences also go to the run's summary.json.
        license_name: the card's licence, by the Hub's name for it.

    Raises:
        UserError: wrong input, or no native class holds the model exactly.
        CheckpointError: damaged checkpoint, or the result differs from the trained model; `out` is untouched.
    """
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: unknown; use one of {', '.join(DTYPES)}")
    out = Path(out)
    _refuse_occupied(out, overwrite)
    trained = TrainedModel.open(Path(source))
    host = host_for(trained.architecture)
    draft = draft_folder(out)
    try:
        _write(trained, host, draft, DTYPES[dtype], max_shard_size)
        verification = verify_folder(trained, draft, scratch=out.parent) if verify else None
        write_text(draft / ORIGIN, json.dumps(_origin(trained, host, verification), indent=1) + "\n")
        write_text(draft / "README.md", model_card(trained, host, license_name, verification))
        _move(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    if verification:
        record(trained, verification)
    parameters = sum(parameter.numel() for parameter in trained.architecture.skeleton.parameters())
    return ExportReport(out, host.model_class.__name__, trained.checkpoint.step, parameters, verification)


def _write(trained: TrainedModel, host: Host, folder: Path, dtype: torch.dtype, max_shard_size: str) -> None:
    """Model, configs and tokenizer."""
    architecture, tokens = trained.architecture, trained.tokenizer.special
    checkpoint = trained.checkpoint
    with quiet():
        model = mapping.built_and_filled(host, architecture, tokens, dtype, checkpoint.read, checkpoint.index.names())
        try:
            model.save_pretrained(folder, max_shard_size=max_shard_size)
        except ValueError as error:  # how transformers refuses a size it cannot read
            raise UserError(f"--max-shard-size {max_shard_size}: {' '.join(str(error).split())}") from error
        path, length = trained.tokenizer.path, architecture.sequence_length
        fast_tokenizer(path, length, host.marks, host.padding_side).save_pretrained(folder)
    shutil.copyfile(trained.tokenizer.path, folder / TOKENIZER)


def _origin(trained: TrainedModel, host: Host, verification: Verification | None) -> dict[str, Any]:
    """What import needs beside the host's config, and what marks the folder as an export. No paths of this machine."""
    experiment = trained.experiment.model_dump(mode="json")
    kept = ("sequence_length", "document_mask", "pad_vocab_to", "vocab_size")
    return {
        "format": FORMAT,
        "version": __version__,
        "host": host.model_type,
        "step": trained.checkpoint.step,
        "source_length": trained.architecture.source_length,
        "target_length": trained.architecture.target_length,
        "experiment": {
            "name": experiment["name"],
            "model": experiment["model"],
            "objective": experiment["objective"],
            "data": {key: experiment["data"][key] for key in kept},
        },
        "verification": verification.to_json() if verification else None,
    }


def read_origin(folder: Path) -> dict[str, Any] | None:
    """The ORIGIN file of an exported folder; None for any other folder."""
    try:
        origin = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return origin if isinstance(origin, dict) and origin.get("format") == FORMAT else None


def draft_folder(out: Path) -> Path:
    """Make the folder beside `out` that becomes `out` when it is complete.

    Raises:
        UserError: it cannot be made.
    """
    draft = out.parent / f".{out.name}.{os.getpid()}.tmp"
    try:
        draft.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror}); give another folder") from error
    return draft


def _refuse_occupied(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder to make")
    if not any(out.iterdir()):
        return
    if read_origin(out) is None:
        raise UserError(f"{out}: not empty and not an earlier export; give another folder")
    if not overwrite:
        raise UserError(f"{out}: holds an earlier export; give another folder, or --overwrite to replace it")


def _move(draft: Path, out: Path) -> None:
    """Put the finished folder in place; an earlier export stands aside and is removed last."""
    aside = draft.with_suffix(".old")
    if out.exists():
        out.rename(aside)
    draft.rename(out)
    sync(out.parent)
    shutil.rmtree(aside, ignore_errors=True)
