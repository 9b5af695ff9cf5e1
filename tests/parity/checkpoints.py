"""Checkpoints with random weights, gains and biases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from pretrain.config.load import build_experiment, to_yaml
from pretrain.data.tokenizer import Tokenizer
from pretrain.models.layer_list import LayerList
from pretrain.models.registry import FAMILIES
from pretrain.objectives.registry import OBJECTIVES
from pretrain.state.index import WEIGHT, Box, Index, Piece
from pretrain.state.writer import commit, rank_file, write_common_files, write_rank_file

SOURCE_LENGTH = 40
SENTINELS = 20
SMALL = {"hidden_size": 32, "num_heads": 4, "ffn_size": 48}
DATA = {"sequence_length": SOURCE_LENGTH, "vocab_size": 500, "pad_vocab_to": 64}
CONFIG = {
    "name": "parity",
    "model": {
        "encoder_layers": 3,
        "decoder_layers": 2,
        "block": {"kind": "deepnorm"},
        **SMALL,
    },
    "objective": {"kind": "span_denoising", "sentinels": SENTINELS},
    "data": DATA,
}
GPT = {
    "name": "parity",
    "model": {"family": "decoder", "decoder_layers": 3, "embedding_norm": False, "block": {"kind": "pre_ln"}, **SMALL},
    "objective": {"kind": "causal_lm"},
    "data": DATA,
}
BERT = {
    "name": "parity",
    "model": {"family": "encoder", "encoder_layers": 3, "activation": "gelu", "block": {"kind": "deepnorm"}, **SMALL},
    "objective": {"kind": "masked_lm"},
    "data": DATA,
}

MakeCheckpoint = Callable[..., Path]


def with_model(config: dict = CONFIG, **model: object) -> dict:
    return {**config, "model": {**config["model"], **model}}


@torch.no_grad()
def perturb(model: torch.nn.Module, seed: int) -> None:
    """As after training: no gain is one and no bias zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)


def write_checkpoint(
    tokenizer_model: bytes, folder: Path, config: dict | None = None, step: int = 7, **training: object
) -> Path:
    """A checkpoint at `folder` of a model that a run with `config` could have trained; `training` is its state."""
    experiment = build_experiment(config or CONFIG)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f"{folder.name}.tmp")
    draft.mkdir()
    (draft / "tokenizer.model").write_bytes(tokenizer_model)
    tokenizer = Tokenizer.load(draft / "tokenizer.model")
    data = experiment.data
    objective = OBJECTIVES.build(experiment.objective, tokenizer.special, data.sequence_length)
    rows = -(-tokenizer.vocab_size // data.pad_vocab_to) * data.pad_vocab_to
    lengths = objective.source_length, objective.target_length
    spec = FAMILIES[experiment.model.family](experiment.model, rows, *lengths)
    model = LayerList(spec, seed=1)
    perturb(model, seed=2)
    pieces, at = [], 0
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        pieces.append(Piece(name, shape, Box.whole(shape), 0, parameter.numel(), at, rank_file(0)))
        at += parameter.numel()
    buffer = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    record = write_rank_file(draft, 0, pieces, {WEIGHT: buffer})
    texts = {"config.yaml": to_yaml(experiment).encode()}
    write_common_files(draft, Index(pieces), {"step": step, **training}, texts)
    commit(draft, folder, step, {}, {rank_file(0): record})
    return folder
