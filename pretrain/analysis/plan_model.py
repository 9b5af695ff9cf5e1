"""A model's size before it is built: parameters by part, FLOPs a token."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from pretrain.config.schema import ModelSection
from pretrain.models.layers import ModelSpec
from pretrain.models.parameters import row_group

TRAINING, RECOMPUTED = 3, 4
"""Passes of a forward's FLOPs that training a layer takes: forward, and backward by inputs and by weights; one more
forward where activations are recomputed."""


class Sizes(NamedTuple):
    """Positions of a sample in encoder and decoder (0 where there is no such stack), and rows of the embedding."""

    source: int
    target: int
    vocabulary: int

    @property
    def tokens(self) -> int:
        return self.source + self.target


@functools.lru_cache(maxsize=4)
def layer_parameters(spec: ModelSpec) -> tuple[int, ...]:
    """Parameters of each layer, shared modules left out; built one by one on the meta device."""
    with torch.device("meta"):
        return tuple(sum(p.numel() for p in layer.factory().parameters()) for layer in spec.layers)


@functools.lru_cache(maxsize=4)
def shared_parameters(spec: ModelSpec) -> dict[str, int]:
    """Parameters of each shared module, counted once."""
    with torch.device("meta"):
        return {key: sum(p.numel() for p in build().parameters()) for key, build in spec.shared.items()}


def total_parameters(spec: ModelSpec) -> int:
    return sum(layer_parameters(spec)) + sum(shared_parameters(spec).values())


def parameters_by_part(spec: ModelSpec) -> dict[str, int]:
    """Part (a stack, an embedding, a final norm) -> parameters, in order of execution."""
    parts = dict(shared_parameters(spec))
    for layer, count in zip(spec.layers, layer_parameters(spec), strict=True):
        group, _ = row_group(layer.name + ".x")
        name = f"{group} layers" if ".layers." in layer.name else group
        parts[name] = parts.get(name, 0) + count
    return {name: count for name, count in parts.items() if count}


def tokens_per_step(global_batch_size: int, tokens_per_sample: int) -> int:
    """Source and target positions of a global batch, padding included."""
    return global_batch_size * tokens_per_sample


def forward_flops_per_token(spec: ModelSpec, sizes: Sizes) -> float:
    """FLOPs of the forward pass, a token of source or target, 2 a multiply-add.

    Matrix products alone: a layer of width d, FFN f (m matrices) and S positions has 2 S (4 d^2 + m d f) in its
    projections and 4 S^2 d in its attention, the whole square also where it is causal (as PaLM and Megatron-LM count);
    cross-attention of T queries 2 (2 T + 2 S) d^2 + 4 T S d; the output 2 T V d. Embedding, norms, softmax, dropout and
    the mean that SAS subtracts are left out.
    """
    return sum(layer.cost for layer in spec.layers) / sizes.tokens


def training_flops_per_token(spec: ModelSpec, sizes: Sizes) -> float:
    """FLOPs that one token of training needs: what MFU counts, without recomputation."""
    return TRAINING * forward_flops_per_token(spec, sizes)


def model_flops_utilisation(
    tokens_per_second: float, flops_per_token: float, processes: int, peak_flops: float
) -> float:
    """MFU (PaLM, arXiv 2204.02311, appendix B): the share of the devices' peak that went into the model's own FLOPs.

    Args:
        tokens_per_second: of all processes together.
        flops_per_token: of `training_flops_per_token`.
        processes: devices.
        peak_flops: of one device, FLOP/s, in the precision of the run.
    """
    return tokens_per_second * flops_per_token / (processes * peak_flops)


def stack_of(name: str) -> str:
    """The stack that a layer of this canonical name is a block of; empty for all that is no block."""
    return name.partition(".")[0] if ".layers." in name else ""


def kept_elements(model: ModelSection, encodes: bool, sizes: Sizes) -> float:
    """What a layer keeps of one sample for its backward pass, roughly."""
    positions = sizes.source if encodes else sizes.target
    dropout = 1 if model.dropout else 0
    widths: float = LAYER_WIDTHS + 2 * dropout
    if not encodes and sizes.source:
        widths += CROSS_WIDTHS + dropout + 2 * sizes.source / positions
    return positions * (widths * model.hidden_size + FFN_TENSORS.get(model.activation, 2) * model.ffn_size)


LAYER_WIDTHS, CROSS_WIDTHS = 8, 4
"""Tensors of the residual width that a layer of one attention and one FFN keeps for its backward pass (inputs of norms
and projections; queries, keys, values), and what attention to the encoder adds, keys and values of its output apart."""
FFN_TENSORS = {"relu": 1, "swiglu": 4, "geglu": 4}
"""Tensors of the FFN's inner width that are kept, by activation; 2 for all others."""
