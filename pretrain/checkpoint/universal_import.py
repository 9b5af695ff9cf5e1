"""From a universal checkpoint of DeepSpeed to one of ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoint.universal import bar, drafted, refuse_existing
from pretrain.checkpoint.universal_folder import MODEL_STATES, OWN, UniversalFolder
from pretrain.checkpoint.universal_names import canonical_names, spec_of, stripped_names
from pretrain.config.load import load_experiment, to_yaml
from pretrain.config.schema import Experiment
from pretrain.data.prepare import build_objective, prepare, wanted_sentinels, wants_mask
from pretrain.data.tokenizer import Tokenizer
from pretrain.errors import CheckpointError, UserError
from pretrain.models.layer_list import LayerList
from pretrain.models.layers import ModelSpec
from pretrain.state.bounded import BadFile
from pretrain.state.files import FileRecord
from pretrain.state.index import MOMENTS, WEIGHT, Box, Index, Piece
from pretrain.state.reader import check_name
from pretrain.state.run_files import CONFIG, TOKENIZER
from pretrain.state.training_state import read_training
from pretrain.state.values import count
from pretrain.state.writer import TRAINING, commit, rank_file, write_common_files, write_rank_file

FILE_ELEMENTS = 2**27
"""Elements after which a file is full: 512 MiB a quantity, which bounds the memory that a conversion takes."""


@dataclass(frozen=True)
class Model:
    """What the folder is said to hold."""

    experiment: Experiment
    spec: ModelSpec
    tokenizer: Path
    tokens_per_sample: int
    fingerprint: str | None
    """Of the data, where it was opened."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical name -> shape of every parameter."""
        with torch.device("meta"):
            layers = LayerList(self.spec)
        return {name: tuple(parameter.shape) for name, parameter in layers.named_parameters()}


@dataclass(frozen=True)
class Imported:
    """What was written; `remarks` are what could not be known, one line each."""

    folder: Path
    step: int
    parameters: int
    elements: int
    moments: bool
    resumes: bool
    remarks: list[str] = field(default_factory=list)


def from_deepspeed(
    source: Path,
    out: Path,
    experiment: Experiment | None = None,
    prefix: str | None = None,
    weights_only: bool = False,
    step: int | None = None,
) -> Imported:
    """Write a universal checkpoint as one of ours, under a temporary name that is renamed at the end.

    Args:
        source: the folder that holds zero/, or one with latest_universal.
        out: checkpoint folder to make.
        experiment: what is to go on from it; its data is prepared as training would. Default: what `to_deepspeed` left
            in the folder, if it comes from there.
        prefix: what stands before the canonical names; default: found out.
        weights_only: leave out the moments.
        step: updates made, where the folder does not say.

    Raises:
        CheckpointError: a file is missing, damaged, unsafe, or not what the model has.
        UserError: `out` exists, or another wrong input.
        SaveFailed: it could not be written (a full disk).
    """
    folder = UniversalFolder(source)
    refuse_existing(out)
    model = _prepared(experiment) if experiment is not None else _own(folder)
    try:
        shapes = model.shapes() if model else {}
        if model:
            names = canonical_names(folder.names, list(shapes), model.spec, prefix)
        else:
            names = stripped_names(folder.names, prefix)
    except CheckpointError as error:
        raise CheckpointError(f"{folder.folder}: {error}") from None
    moments = folder.has_moments and not weights_only
    remarks = [] if folder.has_moments else [f"no moments in {folder.zero}: weights only, for --init-from"]
    counters = _counters(folder, remarks)
    done = _steps(folder, names, moments, step, counters)
    check_name(out, done)
    training = _training(folder, model if experiment is not None else None, done, counters, remarks)
    texts = {CONFIG: to_yaml(model.experiment).encode(), TOKENIZER: model.tokenizer.read_bytes()} if model else {}
    quantities = (WEIGHT, *MOMENTS) if moments else (WEIGHT,)
    written: dict[str, FileRecord] = {}

    def finish(draft: Path) -> None:
        commit(draft, out, done, {"converted_from": "DeepSpeed universal checkpoint"}, written)

    with drafted(out, finish) as draft:
        writer = _Writer(draft, quantities, written)
        for ours, theirs in bar(names.items(), "from universal", len(names)):
            shape = shapes.get(ours) or folder.shape_from(theirs)
            weight = folder.tensor(theirs, WEIGHT, shape)
            values = {q: folder.tensor(theirs, q, tuple(weight.shape)) for q in quantities if q != WEIGHT}
            writer.add(ours, {WEIGHT: weight, **values})
        writer.close()
        write_common_files(draft, Index(writer.pieces), training, texts)
    if not model:
        remarks.append("names and shapes are as found, config and tokenizer unknown: --recipe checks and adds them")
    resumes = moments and "data" in training
    return Imported(out, done, len(names), sum(p.numel for p in writer.pieces), moments, resumes, remarks)


class _Writer:
    """Fills flat buffers and writes a file whenever they are full."""

    def __init__(self, folder: Path, quantities: Sequence[str], written: dict[str, FileRecord]):
        self.folder, self.written = folder, written
        self.pieces: list[Piece] = []
        self._flat: dict[str, list[Tensor]] = {quantity: [] for quantity in quantities}
        self._here: list[Piece] = []
        self._at = 0

    def add(self, name: str, values: dict[str, Tensor]) -> None:
        shape = tuple(values[WEIGHT].shape)
        for quantity, value in values.items():
            self._flat[quantity].append(value.reshape(-1))
        file = rank_file(len(self.written))
        self._here.append(Piece(name, shape, Box.whole(shape), 0, values[WEIGHT].numel(), self._at, file))
        self._at += values[WEIGHT].numel()
        if self._at >= FILE_ELEMENTS:
            self.close()

    def close(self) -> None:
        """Write what is held."""
        if not self._here:
            return
        number = len(self.written)
        buffers = {}
        for quantity, parts in self._flat.items():
            buffers[quantity] = torch.cat(parts)
            parts.clear()
        self.written[rank_file(number)] = write_rank_file(self.folder, number, self._here, buffers)
        self.pieces += self._here
        self._here, self._at = [], 0


def _prepared(experiment: Experiment) -> Model:
    data = prepare(experiment)
    spec = spec_of(experiment, data.tokenizer.vocab_size, data.objective)
    length = data.objective.source_length + data.objective.target_length
    return Model(experiment, spec, Path(data.tokenizer.path), length, data.fingerprint)


def _own(folder: UniversalFolder) -> Model | None:
    """The model that `to_deepspeed` left beside zero/."""
    own = folder.folder / OWN
    if not (own / CONFIG).is_file() or not (own / TOKENIZER).is_file():
        return None
    experiment = load_experiment(str((own / CONFIG).resolve()))
    tokenizer = Tokenizer.load(own / TOKENIZER, wanted_sentinels(experiment), wants_mask(experiment))
    objective = build_objective(experiment, tokenizer.special)
    spec = spec_of(experiment, tokenizer.vocab_size, objective)
    return Model(experiment, spec, own / TOKENIZER, objective.source_length + objective.target_length, None)


def _counters(folder: UniversalFolder, remarks: list[str]) -> dict[str, int] | None:
    """global_steps and skipped_steps of DeepSpeed's engine; None where they cannot be read safely."""
    try:
        states = folder.model_states()
        return {key: count(int(states[key]), key) for key in ("global_steps", "skipped_steps")}
    except CheckpointError as error:
        remarks.append(f"counters not read, skipped steps taken as 0 ({error})")
    except (KeyError, TypeError, ValueError, OverflowError):
        remarks.append(f"{folder.folder / MODEL_STATES}: holds no counters, skipped steps taken as 0")
    return None


def _steps(
    folder: UniversalFolder, names: dict[str, str], moments: bool, stated: int | None, counters: dict[str, int] | None
) -> int:
    """Updates that the optimizer has made: of its step files, as stated, or by the engine's counters."""
    seen: dict[int | None, str] = {}
    if moments:
        for theirs in names.values():
            seen.setdefault(folder.step(theirs), theirs)
    if len(seen) > 1:
        (a, one), (b, other) = list(seen.items())[:2]
        raise CheckpointError(f"{folder.zero}: {one} is at step {a}, {other} at {b}; all must be at one step")
    found = next(iter(seen), None)
    if found is not None and stated not in (None, found):
        raise UserError(f"--step {stated}: the optimizer in {folder.zero} has made {found} updates; leave it out")
    if found is not None:
        return found
    if stated is not None:
        return stated
    if counters is not None:
        return counters["global_steps"] - counters["skipped_steps"]
    if moments:
        raise CheckpointError(f"{folder.folder}: nothing says how many updates the optimizer has made; give --step N")
    return 0


def _training(
    folder: UniversalFolder, model: Model | None, step: int, counters: dict[str, int] | None, remarks: list[str]
) -> dict[str, Any]:
    """What a resume needs beside weights and moments, as far as it is known.

    Args:
        model: of a stated experiment, with its data opened.
    """
    if model is None:
        return _own_training(folder, step, remarks) or {"step": step, "optimizer_steps": step}
    experiment, skipped = model.experiment, (counters or {}).get("skipped_steps", 0)
    batch = experiment.batch.global_batch_size
    samples = step * batch
    progress = {"step": step, "samples": samples, "tokens": samples * model.tokens_per_sample, "skipped": skipped}
    consumed = samples + skipped * batch
    remarks.append(
        f"taken for granted: this recipe's data in its order, {consumed:,} samples read ({step + skipped:,} steps x "
        f"{batch}), its optimizer and its schedule; DeepSpeed's files do not say"
    )
    return {
        "progress": progress,
        "data": {"samples_consumed": consumed, "skip_ranges": [], "fingerprint": model.fingerprint},
        "optimizer_steps": step,
        "loss_scaler": {},
        "callbacks": {"Checkpoints": {"saved_step": step}},
    }


def _own_training(folder: UniversalFolder, step: int, remarks: list[str]) -> dict[str, Any] | None:
    """The training state that `to_deepspeed` left; None where there is none, or it is of another step."""
    path = folder.folder / OWN / TRAINING
    if not path.is_file():
        return None
    try:
        training = read_training(path, None)
    except BadFile as error:
        raise CheckpointError(f"{path}: {error}; remove it, and give --recipe") from None
    saved = training.get("optimizer_steps", training.get("step"))
    if saved != step or training.get("progress", {}).get("step", step) != step:
        remarks.append(f"{path}: is of step {saved}, the optimizer of {step}: not used; --recipe makes it resumable")
        return None
    return training
