"""The training engine's own modules, whole and in fp64, to compare native classes with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.hf.trained import TrainedModel
from pretrain.models.layer_list import LayerList
from pretrain.models.registry import FAMILIES


def whole_model(trained: TrainedModel, segmented: bool = False) -> LayerList:
    """The trained model in fp64, in evaluation mode."""
    shape = trained.architecture
    lengths = shape.source_length, shape.target_length
    spec = FAMILIES[shape.model.family](shape.model, shape.vocab_size, *lengths, segmented=segmented)
    model = LayerList(spec).double().eval()
    trained.checkpoint.fill(model.named_parameters())
    return model


def state_of(trained: TrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Without labels, so that all positions have logits."""
    spec = trained.architecture.spec
    return spec.state({key: batch[key] for key in spec.inputs})


def logits_of(model: LayerList, ids: list[int], mask: list[int] | None = None) -> Tensor:
    """Logits [T, V] of a model of one stack on one sequence."""
    given = torch.tensor([mask or [1] * len(ids)])
    with torch.no_grad():
        (logits,) = model((torch.tensor([ids]), given, torch.zeros(1, dtype=torch.int64)))
    return logits[0]


def greedy(model: LayerList, prompt: list[int], length: int, eos: int, prefix: bool = False) -> list[int]:
    """`length` tokens after a prompt or up to eos, without a cache; `prefix`: all of the prompt sees all of it."""
    ids = list(prompt)
    while len(ids) < length and ids[-1] != eos:
        mask = [-1] * len(prompt) + [1] * (len(ids) - len(prompt)) if prefix else None
        ids.append(int(logits_of(model, ids, mask)[-1].argmax()))
    return ids


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
