"""The papers' equations written out with plain tensor arithmetic, independently of `pretrain`.

Weights come as a dict of canonical names; everything runs in the dtype of the weights.
"""

from __future__ import annotations

import math

import torch

NORM_EPS = 1e-5


def layer_norm(x, gain, bias, eps=NORM_EPS):
    """gain * (x - mean) / sqrt(var + eps) + bias over the last dimension, biased variance."""
    mean = x.sum(-1, keepdim=True) / x.shape[-1]
    variance = ((x - mean) ** 2).sum(-1, keepdim=True) / x.shape[-1]
    return gain * (x - mean) / (variance + eps) ** 0.5 + bias


def activate(kind, x):
    if kind == "relu":
        return torch.maximum(x, torch.zeros_like(x))
    if kind == "gelu":
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    if kind == "gelu_tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x / (1 + torch.exp(-x))


def attention(w, name, heads, x, memory, visible):
    """Head by head: softmax(q k^T / sqrt(d_h)) v. visible: bool broadcastable to [B, T, S]."""

    def linear(part, y):
        return y @ w[f"{name}.{part}.weight"].T + w[f"{name}.{part}.bias"]

    q, k, v = linear("q_proj", x), linear("k_proj", memory), linear("v_proj", memory)
    size = x.shape[-1] // heads
    outputs = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
        scores = scores.masked_fill(~visible, -math.inf)
        weights = torch.exp(scores - scores.max(-1, keepdim=True).values)
        outputs.append(weights / weights.sum(-1, keepdim=True) @ v[..., part])
    return linear("out_proj", torch.cat(outputs, -1))


def residual_constants(kind, stack, encoder_layers, decoder_layers):
    """(alpha, eps of the norms) of the design; DeepNorm's table as published (0.81, not 27^(-1/16))."""
    if kind != "deepnorm":
        return 1.0, NORM_EPS
    if encoder_layers and decoder_layers:
        if stack == "encoder":
            alpha = 0.81 * (encoder_layers**4 * decoder_layers) ** 0.0625
        else:
            alpha = (3 * decoder_layers) ** 0.25
    else:
        alpha = (2 * (encoder_layers or decoder_layers)) ** 0.25
    return alpha, alpha**2 * 1e-5


def block(w, kind, x, *, heads, activation, alpha, eps, causal, source=None, memory=None, memory_mask=None):
    """One layer. source: bool [B, S] or None, memory [B, S, d] or None.

    Returns:
        the output, and {branch: what entered its norm}.
    """
    length = x.shape[1]
    visible = torch.ones(length, length, dtype=torch.bool)[None]
    if causal:
        visible = visible.tril()
    if source is not None:
        visible = visible & source[:, None, :]
    branches = [("self_attention", lambda y: attention(w, "self_attention", heads, y, y, visible))]
    if memory is not None:
        seen = torch.ones(1, 1, memory.shape[1], dtype=torch.bool) if memory_mask is None else memory_mask[:, None, :]
        branches.append(("cross_attention", lambda y: attention(w, "cross_attention", heads, y, memory, seen)))

    def ffn(y):
        hidden = activate(activation, y @ w["ffn.fc1.weight"].T + w["ffn.fc1.bias"])
        return hidden @ w["ffn.fc2.weight"].T + w["ffn.fc2.bias"]

    branches.append(("ffn", ffn))
    entered = {}
    for name, branch in branches:
        gain, bias = w[f"{name}_norm.weight"], w[f"{name}_norm.bias"]
        if kind == "pre_ln":
            entered[name] = x
            x = x + branch(layer_norm(x, gain, bias, eps))
        else:
            entered[name] = alpha * x + branch(x)
            x = layer_norm(entered[name], gain, bias, eps)
    return x, entered


def encoder_decoder(w, model, batch):
    """The whole model. model: ModelSection; batch: input_ids, attention_mask, decoder_input_ids.

    Returns:
        logits [B, T, V], and {"encoder.ffn": [what entered the norm of layer 0, 1, ...], ...}.
    """
    kind, N, M = model.block.kind, model.encoder_layers, model.decoder_layers
    source, entered = batch["attention_mask"] != 0, {}

    def embed(stack, ids):
        x = w["token_embedding.weight"][ids] + w[f"{stack}.embeddings.positions.weight"][: ids.shape[1]]
        if model.embedding_norm:
            x = layer_norm(x, w[f"{stack}.embeddings.norm.weight"], w[f"{stack}.embeddings.norm.bias"])
        return x

    def run(stack, count, x, **streams):
        alpha, eps = residual_constants(kind, stack, N, M)
        for index in range(count):
            prefix = f"{stack}.layers.{index}."
            own = {name.removeprefix(prefix): value for name, value in w.items() if name.startswith(prefix)}
            x, norms = block(
                own, kind, x, heads=model.num_heads, activation=model.activation, alpha=alpha, eps=eps, **streams
            )
            for branch, value in norms.items():
                entered.setdefault(f"{stack}.{branch}", []).append(value)
        if kind == "pre_ln":
            x = layer_norm(x, w[f"{stack}.final_norm.weight"], w[f"{stack}.final_norm.bias"])
        return x

    memory = run("encoder", N, embed("encoder", batch["input_ids"]), causal=False, source=source)
    x = embed("decoder", batch["decoder_input_ids"])
    x = run("decoder", M, x, causal=True, memory=memory, memory_mask=source)
    output = w["token_embedding.weight" if model.tie_embeddings else "output_projection.weight"]
    return x @ output.T, entered


def summed_loss(logits, labels):
    """Sum of -log p(label) over labels that are not -100, and their number."""
    logp = logits - torch.logsumexp(logits, -1, keepdim=True)
    real = labels != -100
    picked = logp.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return -(picked * real).sum(), int(real.sum())
