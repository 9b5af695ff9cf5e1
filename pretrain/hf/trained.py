"""What was trained: the architecture, and a checkpoint opened with all that belongs to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.config.load import load_experiment
from pretrain.config.schema import Experiment, ModelSection
from pretrain.data.tokenizer import Tokenizer
from pretrain.errors import CheckpointError
from pretrain.models.layer_list import LayerList
from pretrain.models.layers import ModelSpec
from pretrain.models.registry import FAMILIES
from pretrain.state.files import replace_text
from pretrain.state.reader import Checkpoint, resolve_checkpoint

CONFIG, TOKENIZER, SUMMARY, METRICS = "config.yaml", "tokenizer.model", "summary.json", "metrics.jsonl"
TOKEN_TABLE = "token_embedding.weight"
SOURCE_TABLE = "encoder.embeddings.positions.weight"
TARGET_TABLE = "decoder.embeddings.positions.weight"


@dataclass(frozen=True)
class Architecture:
    """A model without weights.

    Attributes:
        vocab_size: rows of the token embedding.
        source_length, target_length: positions of encoder and decoder; 0 where there is no such stack.
    """

    model: ModelSection
    vocab_size: int
    source_length: int
    target_length: int

    @cached_property
    def spec(self) -> ModelSpec:
        return FAMILIES[self.model.family](self.model, self.vocab_size, self.source_length, self.target_length)

    @cached_property
    def skeleton(self) -> LayerList:
        """The training engine's modules on the meta device: shapes and constants, no memory."""
        with torch.device("meta"):
            return LayerList(self.spec)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical name -> shape of every parameter."""
        return {name: tuple(parameter.shape) for name, parameter in self.skeleton.named_parameters()}

    @torch.no_grad()
    def logits(
        self,
        checkpoint: Checkpoint,
        batch: dict[str, Tensor],
        dtype: torch.dtype,
        watch: Callable[[str, Tensor], None] = lambda name, hidden: None,
    ) -> Tensor:
        """The trained model's output on `batch`, by the training engine's own modules.

        Layers are built, filled, run and dropped one after the other, so that memory holds one layer.

        Args:
            checkpoint: holds the weights.
            batch: the keys of `spec.inputs`.
            dtype: of weights and arithmetic.
            watch: is told each layer's name and output hidden state.

        Returns:
            [B, T, vocab_size] in `dtype`.
        """
        state = self.spec.state(batch)
        for index, layer in enumerate(self.spec.layers):
            part = LayerList(self.spec, index, index + 1).to(dtype).eval()
            checkpoint.fill(part.named_parameters())
            state = part(state)
            watch(layer.name, state[0])
        return state[0]


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint with its experiment and tokenizer.

    Attributes:
        run: the run's folder, where the checkpoint lies in one.
    """

    checkpoint: Checkpoint
    experiment: Experiment
    architecture: Architecture
    tokenizer: Tokenizer
    run: Path | None

    @classmethod
    def open(cls, path: Path) -> TrainedModel:
        """Open a checkpoint, or a run's newest one.

        Raises:
            CheckpointError: none there, damaged, without its config or tokenizer, or not the model of its config.
        """
        folder = resolve_checkpoint(path)
        checkpoint = Checkpoint(folder)
        for name in (CONFIG, TOKENIZER):
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder}: it has no {name}; export needs a checkpoint that a run wrote")
        experiment = load_experiment(str((folder / CONFIG).resolve()))
        model = cls(
            checkpoint,
            experiment,
            _architecture(checkpoint, experiment),
            Tokenizer.load(folder / TOKENIZER),
            _run_of(folder),
        )
        model._check()
        return model

    def _check(self) -> None:
        shapes = self.architecture.shapes()
        for name, shape in shapes.items():
            self.checkpoint.expect(name, shape)
        unknown = [name for name in self.checkpoint.index.names() if name not in shapes]
        if unknown:
            raise CheckpointError(
                f"{self.checkpoint.folder}: {unknown[0]} (and {len(unknown) - 1} more) is no parameter of the model "
                f"in its {CONFIG}; was the file changed?"
            )
        if self.tokenizer.vocab_size > self.architecture.vocab_size:
            raise CheckpointError(
                f"{self.checkpoint.folder}: {TOKENIZER} has {self.tokenizer.vocab_size} pieces, the embedding "
                f"{self.architecture.vocab_size} rows; it is the tokenizer of another run"
            )

    def training_facts(self) -> dict[str, Any]:
        """Figures of the run at this checkpoint's step: what metrics.jsonl and summary.json say, if they do."""
        facts: dict[str, Any] = {}
        if self.run is None:
            return facts
        metrics = self.run / METRICS
        for line in metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []:
            try:
                record = json.loads(line)
            except ValueError:  # the last line of a run that was killed
                continue
            if isinstance(record, dict) and record.get("step") == self.checkpoint.step:
                facts.update(record)
        summary = read_summary(self.run)
        if summary.get("step", self.checkpoint.step) == self.checkpoint.step:
            facts.update(summary)
        return facts


def _architecture(checkpoint: Checkpoint, experiment: Experiment) -> Architecture:
    def rows(name: str) -> int:
        return checkpoint.index.shape(name)[0] if name in checkpoint.index else 0

    return Architecture(experiment.model, rows(TOKEN_TABLE), rows(SOURCE_TABLE), rows(TARGET_TABLE))


def _run_of(folder: Path) -> Path | None:
    checkpoints = folder.resolve().parent
    run = checkpoints.parent
    return run if checkpoints.name == "checkpoints" and (run / CONFIG).is_file() else None


def read_summary(run: Path) -> dict[str, Any]:
    """summary.json of a run; empty if there is none.

    Raises:
        CheckpointError: it is there and is not a JSON object.
    """
    path = run / SUMMARY
    if not path.is_file():
        return {}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        summary = None
    if not isinstance(summary, dict):
        raise CheckpointError(f"{path}: is not a JSON object; remove it, the next training session writes it again")
    return summary


def merge_summary(run: Path, figures: dict[str, Any]) -> None:
    """Add `figures` to the run's summary.json, atomically."""
    replace_text(run / SUMMARY, json.dumps({**read_summary(run), **figures}, indent=1) + "\n")
