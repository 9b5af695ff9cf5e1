"""The model update and DeepNet's bound on it, written out from all weights at once in fp64."""

from __future__ import annotations

import math

import targets_equations as equations
import torch

from pretrain.monitors.model_update import ModelUpdate
from pretrain.monitors.model_update_bound import ModelUpdateBound


def chosen(config, spec):
    return [ModelUpdate(spec), ModelUpdateBound(spec, config.train.seed)]


def output(weights, config, batch):
    """F [tokens, d]: what the head would project, at the positions that have a label."""
    untied = config.model.model_copy(update={"tie_embeddings": False})
    identity = {"output_projection.weight": torch.eye(config.model.hidden_size, dtype=torch.float64)}
    hidden, _ = equations.encoder_decoder(weights | identity, untied, batch)
    return hidden[batch["labels"] != -100]


def update(weights, others, config, batch):
    """Root of the mean over tokens of ||F_t - F'_t||^2."""
    difference = output(weights, config, batch) - output(others, config, batch)
    return math.sqrt(sum(float(row @ row) for row in difference) / len(difference))


def size(matrix):
    """rms / xavier_std."""
    rows, columns = matrix.shape
    return math.sqrt(float((matrix**2).mean()) / (2 / (rows + columns)))


def sublayers(weights, first, stack, depth, names):
    """[(v, w, ||dtheta||)] of each sublayer."""
    found = []
    for layer in range(depth):
        for name in names:
            one, two = ("fc1", "fc2") if name == "ffn" else ("v_proj", "out_proj")
            matrices = [f"{stack}.layers.{layer}.{name}.{matrix}.weight" for matrix in (one, two)]
            v, w = (size(weights[matrix]) for matrix in matrices)
            dv, dw = (size(weights[matrix] - first[matrix]) for matrix in matrices)
            found.append((v, w, math.hypot(dv, dw)))
    return found


def single(parts, alpha):
    return sum(math.hypot(v, w) / alpha * change for v, w, change in parts)


def bound(weights, first, model):
    """As the paper has it, times sqrt(d)."""
    N, M = model.encoder_layers, model.decoder_layers
    kind, root = model.block.kind, math.sqrt(model.hidden_size)
    if not N:
        alpha = equations.residual_alpha(kind, "decoder", N, M)
        return root * single(sublayers(weights, first, "decoder", M, ("self_attention", "ffn")), alpha)
    alpha_e, alpha_d = (equations.residual_alpha(kind, stack, N, M) for stack in ("encoder", "decoder"))
    encoder = sublayers(weights, first, "encoder", N, ("self_attention", "ffn"))
    decoder = sublayers(weights, first, "decoder", M, ("self_attention", "cross_attention", "ffn"))
    cross = sum(v * w / alpha_d for v, w, _ in sublayers(weights, first, "decoder", M, ("cross_attention",)))
    return root * (cross * single(encoder, alpha_e) + single(decoder, alpha_d))
