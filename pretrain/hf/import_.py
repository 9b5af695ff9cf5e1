"""From a Hugging Face folder to a checkpoint of ours: weights only, for --init-from."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import AutoConfig

from pretrain.config.load import build_experiment, to_yaml
from pretrain.config.schema import Experiment
from pretrain.errors import CheckpointError, UserError
from pretrain.hf import mapping
from pretrain.hf.export import draft_folder, read_origin
from pretrain.hf.hosts import Host, host_of_type
from pretrain.hf.hosts.base import refusal
from pretrain.hf.quiet import quiet
from pretrain.hf.trained import Architecture
from pretrain.hf.transforms import Entry, Rows
from pretrain.hf.verify import load
from pretrain.state.index import WEIGHT, Box, Index, Piece
from pretrain.state.reader import check_name
from pretrain.state.run_files import CONFIG, TOKENIZER
from pretrain.state.writer import commit, rank_file, write_common_files, write_rank_file


@dataclass(frozen=True)
class ImportReport:
    """What was written."""

    folder: Path
    host: str
    block: str
    parameters: int


def import_(
    folder: Path,
    out: Path,
    block: str | None = None,
    source_length: int | None = None,
    target_length: int | None = None,
) -> ImportReport:
    """Write the weights of a Hugging Face folder as a checkpoint at `out`.

    Args:
        folder: a folder that `export` wrote, or another of a class that our families hold exactly.
        out: checkpoint folder to make; must not exist.
        block: model.block.kind to unfold to; default: what the folder was exported from, else
            pre_ln or post_ln, as its class computes.
        source_length, target_length: positions to keep; default: what it was exported from, else all.

    Raises:
        UserError: wrong input, or a model that our families do not hold exactly.
        CheckpointError: a tensor of the folder is missing, left over, or not what it should be.
    """
    folder, out = Path(folder), Path(out)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: not a Hugging Face folder (no config.json)")
    if not (folder / TOKENIZER).is_file():
        raise UserError(f"{folder}: no {TOKENIZER}; put the SentencePiece model there that its ids come from")
    if out.exists():
        raise UserError(f"{out}: exists already; give a checkpoint folder to make")
    check_name(out, step=0)
    with quiet():
        host, architecture, experiment = _describe(folder, block, source_length, target_length)
        model = load(host, folder)
        host.absorb(model)
    weights = _unfold(host, architecture, mapping.tensors(model), may_cut=bool(source_length or target_length))
    del model
    _write_checkpoint(out, weights, experiment, folder / TOKENIZER)
    parameters = sum(weight.numel() for weight in weights.values())
    return ImportReport(out, host.model_class.__name__, experiment.model.block.kind, parameters)  # type: ignore[attr-defined]


def _describe(
    folder: Path, block: str | None, source_length: int | None, target_length: int | None
) -> tuple[Host, Architecture, Experiment]:
    """The host, and the model and experiment of ours that its folder holds."""
    origin = read_origin(folder) or {}
    data: dict[str, Any] = dict(origin.get("experiment", {}))
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    host = host_of_type(config.model_type)
    known = dict(data.get("model", {})) | ({"block": {"kind": block}} if block else {})
    try:
        found = host.architecture_of(config, known)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise UserError(f"{folder}/config.json: model.{where} = {problem['input']!r}: {problem['msg']}") from error
    architecture = replace(
        found,
        source_length=_length("--source-length", source_length, origin.get("source_length"), found.source_length),
        target_length=_length("--target-length", target_length, origin.get("target_length"), found.target_length),
    )
    if reason := refusal(host, architecture):
        raise UserError(f"{f'--block {block}' if block else folder}: {reason}")
    data["name"] = data.get("name", "imported")
    data["objective"] = data.get("objective", {"kind": host.objective})
    data["model"] = architecture.model.model_dump(mode="json")
    data["data"] = {**data.get("data", {}), "sequence_length": architecture.sequence_length}
    return host, architecture, build_experiment(data)


def _length(option: str, wanted: int | None, exported: int | None, available: int) -> int:
    """Positions to keep: what the user wants, else what the folder was exported from, else all."""
    if wanted is None:
        return exported or available
    if not 0 < wanted <= available:
        has = f"the folder has {available} positions; give 1 to {available}"
        raise UserError(f"{option} {wanted}: {has if available else 'the model has no such stack; leave it out'}")
    return wanted


def _unfold(host: Host, architecture: Architecture, theirs: dict[str, Tensor], may_cut: bool) -> dict[str, Tensor]:
    """Our parameters, fp32, in the order of the layers. Every tensor of the host is used or checked."""
    shapes = architecture.shapes()
    entries = list(host.entries(architecture))
    mapping.check_map(entries, shapes, theirs)
    found: dict[str, Tensor] = {}
    for entry in entries:
        target = theirs[entry.target]
        if not entry.sources:
            _refuse_other(entry, target)
            continue
        if not may_cut:
            _refuse_rest(entry, target, shapes)
        for name, value in entry.undo(target, [shapes[name] for name in entry.sources]).items():
            if tuple(value.shape) != shapes[name]:
                raise CheckpointError(f"{entry.target}: becomes {list(value.shape)}, {name} has {list(shapes[name])}")
            value = value.to(torch.float32)
            if entry.duplicate and not torch.equal(value, found[name]):
                raise UserError(f"{entry.target}: differs from {name}, which it should be a copy of")
            found[name] = value
    return {name: found[name] for name in shapes}


def _refuse_other(entry: Entry, target: Tensor) -> None:
    wanted = entry.constant(tuple(target.shape)).to(target.dtype)
    if not torch.equal(target, wanted):
        what = "not what our model computes" if wanted.any() else "not zero, and our model has no such parameter"
        raise UserError(f"{entry.target}: is {what}")


def _refuse_rest(entry: Entry, target: Tensor, shapes: dict[str, tuple[int, ...]]) -> None:
    if isinstance(entry.transform, Rows) and entry.transform.rest(target, shapes[entry.sources[0]]).any():
        raise UserError(
            f"{entry.target}: has more trained positions than the {shapes[entry.sources[0]][0]} it was exported with; "
            "say how many to keep by --source-length and --target-length"
        )


def _write_checkpoint(out: Path, weights: dict[str, Tensor], experiment: Experiment, tokenizer: Path) -> None:
    """One rank's file with weights only, and the files that complete a checkpoint; renamed into place."""
    pieces, at = [], 0
    for name, weight in weights.items():
        shape = tuple(weight.shape)
        pieces.append(Piece(name, shape, Box.whole(shape), 0, weight.numel(), at, rank_file(0)))
        at += weight.numel()
    buffer = torch.cat([weight.reshape(-1) for weight in weights.values()])
    draft = draft_folder(out)
    try:
        file = write_rank_file(draft, 0, pieces, {WEIGHT: buffer})
        texts = {CONFIG: to_yaml(experiment).encode(), TOKENIZER: tokenizer.read_bytes()}
        write_common_files(draft, Index(pieces), {"step": 0}, texts)
        commit(draft, out, step=0, layout={"imported": True}, rank_files={rank_file(0): file})
    finally:
        shutil.rmtree(draft, ignore_errors=True)
