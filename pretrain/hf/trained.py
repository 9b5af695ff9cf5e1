"""What was trained: the architecture, and a checkpoint opened with all that belongs to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.config.load import load_experiment
from pretrain.config.schema import Experiment, ModelSection
from pretrain.data.prepare import build_objective
from pretrain.data.tokenizer import Tokenizer
from pretrain.errors import CheckpointError
from pretrain.models.layer_list import LayerList
from pretrain.models.layers import ModelSpec
from pretrain.models.registry import FAMILIES
from pretrain.state.reader import Checkpoint, resolve_checkpoint
from pretrain.state.run_files import CHECKPOINTS, CONFIG, METRICS, TOKENIZER, read_summary, records

TOKEN_TABLE = "token_embedding.weight"
OUTPUT_TABLE = "output_projection.weight"
SOURCE_TABLE = "encoder.embeddings.positions.weight"
TARGET_TABLE = "decoder.embeddings.positions.weight"


@dataclass(frozen=True)
class Architecture:
    """A model without weights, as it reads one document a sample.

    Attributes:
        vocab_size: rows of the token embedding.
        source_length, target_length: positions of encoder and decoder; 0 where there is no such stack.
    """

    model: ModelSection
    vocab_size: int
    source_length: int
    target_length: int

    @property
    def sequence_length(self) -> int:
        """Positions of the encoder, or of a decoder alone: data.sequence_length."""
        return self.source_length or self.target_length

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
        state = self.spec.state({key: batch[key] for key in self.spec.inputs})  # no labels: logits of all positions
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
        tokenizer = Tokenizer.load(folder / TOKENIZER)
        architecture = _architecture(checkpoint, experiment, tokenizer)
        model = cls(checkpoint, experiment, architecture, tokenizer, _run_of(folder))
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
        facts = self.metrics()
        if self.run is not None:
            summary = read_summary(self.run)
            if summary.get("step", self.checkpoint.step) == self.checkpoint.step:
                facts |= summary
        return facts

    def metrics(self) -> dict[str, Any]:
        """What metrics.jsonl says of this checkpoint's step."""
        facts: dict[str, Any] = {}
        for record in records(self.run / METRICS) if self.run is not None else ():
            if record.get("step") == self.checkpoint.step:
                facts |= record
        return facts


def _architecture(checkpoint: Checkpoint, experiment: Experiment, tokenizer: Tokenizer) -> Architecture:
    """Lengths are those of the position tables; computed positions have none, so the objective says it."""

    def rows(name: str) -> int:
        return checkpoint.index.shape(name)[0] if name in checkpoint.index else 0

    lengths = rows(SOURCE_TABLE), rows(TARGET_TABLE)
    if not any(lengths):
        objective = build_objective(experiment, tokenizer.special)
        lengths = objective.source_length, objective.target_length
    return Architecture(experiment.model, rows(TOKEN_TABLE), *lengths)


def _run_of(folder: Path) -> Path | None:
    checkpoints = folder.resolve().parent
    run = checkpoints.parent
    return run if checkpoints.name == CHECKPOINTS and (run / CONFIG).is_file() else None
