"""The papers' equations written out with plain tensor arithmetic, independently of `pretrain`.

Weights come as a dict of canonical names; everything runs in the dtype of the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

NORM_EPS = 1e-5
FINAL_NORM = ("pre_ln", "sub_ln", "peri_ln", "lns")


@dataclass(frozen=True)
class Setting:
    """What a block is told beside its weights; layer counts from 1 in its own stack of `depth` layers."""

    heads: int
    layer: int
    depth: int
    alpha: float = 1.0
    activation: str = "relu"
    norm: str = "layer_norm"
    norm_eps: float = NORM_EPS
    rotary: bool = False


def layer_norm(x, gain, bias, eps=NORM_EPS):
    """gain * (x - mean) / sqrt(var + eps) + bias over the last dimension, biased variance."""
    mean = x.sum(-1, keepdim=True) / x.shape[-1]
    variance = ((x - mean) ** 2).sum(-1, keepdim=True) / x.shape[-1]
    return gain * (x - mean) / (variance + eps) ** 0.5 + bias


def normalise(w, name, kind, x, eps=NORM_EPS, shift=True):
    """The norm of that name; an RMSNorm has no bias and subtracts no mean. shift: whether a LayerNorm has a bias."""
    if kind == "layer_norm" and shift:
        return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"], eps)
    assert f"{name}.bias" not in w
    if kind == "layer_norm":
        return layer_norm(x, w[f"{name}.weight"], 0.0, eps)
    return w[f"{name}.weight"] * x / ((x**2).sum(-1, keepdim=True) / x.shape[-1] + eps) ** 0.5


def linear(w, name, x):
    y = torch.einsum("...i,oi->...o", x, w[f"{name}.weight"])
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def activate(kind, x):
    if kind == "relu":
        return torch.maximum(x, torch.zeros_like(x))
    if kind == "gelu":
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    if kind == "gelu_tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    assert kind == "silu"
    return x / (1 + torch.exp(-x))


def rotated(x):
    """x [B, T, d_h]: elements i and i + d_h/2 are a complex number, turned at position t by t * 10000^(-2i/d_h)."""
    half = x.shape[-1] // 2
    z = torch.complex(x[..., :half], x[..., half:])
    angle = [[t * 10000 ** (-i / half) for i in range(half)] for t in range(x.shape[1])]
    z = z * torch.exp(1j * torch.tensor(angle, dtype=torch.float64))
    return torch.cat([z.real, z.imag], -1)


def attention(w, name, s, x, memory, visible, rotary=False):
    """Head by head: softmax(q k^T / sqrt(d_h)) v. visible: bool broadcastable to [B, T, S]."""
    q, k, v = (linear(w, f"{name}.{part}", y) for part, y in (("q_proj", x), ("k_proj", memory), ("v_proj", memory)))
    size = x.shape[-1] // s.heads
    outputs = []
    for head in range(s.heads):
        part = slice(head * size, (head + 1) * size)
        q_head, k_head = q[..., part], k[..., part]
        if f"{name}.q_norm.weight" in w:
            q_head = normalise(w, f"{name}.q_norm", s.norm, q_head, s.norm_eps, shift=False)
            k_head = normalise(w, f"{name}.k_norm", s.norm, k_head, s.norm_eps, shift=False)
        if rotary:
            q_head, k_head = rotated(q_head), rotated(k_head)
        scores = q_head @ k_head.transpose(1, 2) / math.sqrt(size)
        scores = scores.masked_fill(~visible, -math.inf)
        weights = torch.exp(scores - scores.max(-1, keepdim=True).values)
        outputs.append(weights / weights.sum(-1, keepdim=True) @ v[..., part])
    heads = torch.cat(outputs, -1)
    if f"{name}.out_norm.weight" in w:  # Sub-LN
        heads = normalise(w, f"{name}.out_norm", s.norm, heads, s.norm_eps)
    return linear(w, f"{name}.out_proj", heads)


def feed_forward(w, s, x):
    gates = {"swiglu": "silu", "geglu": "gelu"}
    if s.activation in gates:
        hidden = activate(gates[s.activation], linear(w, "ffn.gate", x)) * linear(w, "ffn.fc1", x)
    else:
        hidden = activate(s.activation, linear(w, "ffn.fc1", x))
    if "ffn.inner_norm.weight" in w:  # Sub-LN
        hidden = normalise(w, "ffn.inner_norm", s.norm, hidden, s.norm_eps)
    return linear(w, "ffn.fc2", hidden)


def residual_alpha(kind, stack, encoder_layers, decoder_layers):
    """alpha of the design; DeepNorm's table as published (0.81, not 27^(-1/16))."""
    depth = encoder_layers if stack == "encoder" else decoder_layers
    if kind == "deepnorm_sqrt":
        return math.sqrt(2 * depth)
    if kind != "deepnorm":
        return 1.0
    if not (encoder_layers and decoder_layers):
        return (2 * depth) ** 0.25
    return 0.81 * (encoder_layers**4 * decoder_layers) ** 0.0625 if stack == "encoder" else (3 * decoder_layers) ** 0.25


def block(w, kind, x, s, visible, memory=None, memory_visible=None):
    """One layer. visible: bool [B or 1, T, T]; memory [B, S, d] and memory_visible [B or 1, T or 1, S], or None.

    Returns:
        the output, and {branch: what entered its norm} ({} for designs without).
    """
    branches = {"self_attention": lambda y: attention(w, "self_attention", s, y, y, visible, s.rotary)}
    if memory is not None:
        branches["cross_attention"] = lambda y: attention(w, "cross_attention", s, y, memory, memory_visible)
    branches["ffn"] = lambda y: feed_forward(w, s, y)
    bottom, entered = x, {}

    def norm(part, y, eps=s.norm_eps):
        return normalise(w, part, s.norm, y, eps)

    for name, branch in branches.items():
        own = f"{name}_norm"
        if kind in ("post_ln", "post_ln_init", "deepnorm", "deepnorm_sqrt"):
            entered[name] = s.alpha * x + branch(x)
            x = norm(own, entered[name], s.alpha**2 * s.norm_eps)
        elif kind == "b2t":
            entered[name] = bottom + x + branch(x) if name == "ffn" else x + branch(x)
            x = norm(own, entered[name])
        elif kind in ("pre_ln", "sub_ln"):
            entered[name] = x.view_as(x)  # read by the norm alone, as its gradient shows
            x = x + branch(norm(own, entered[name]))
        elif kind == "lns":
            entered[name] = x
            x = x + branch(norm(own, x) / math.sqrt(s.layer))
        elif kind == "peri_ln":
            entered[name] = x
            x = x + norm(f"{name}_out_norm", branch(norm(own, x)))
        elif kind == "rezero":
            x = x + w[f"{name}_gain.weight"] * branch(x)
        else:
            assert kind == "keel"
            entered[name] = x
            if s.layer == 1:
                x = x + branch(norm(own, x))
            else:
                x = norm(f"{name}_out_norm", 2 * s.depth * x + branch(norm(own, x)))
    return x, entered


def who_sees_whom(queries, keys, causal):
    """Masks as in an objective's samples (0 padding, k document, -k its prefix), pair by pair: bool [B, T, S]."""
    visible = torch.zeros(len(queries), queries.shape[1], keys.shape[1], dtype=torch.bool)
    for b, row in enumerate(queries.tolist()):
        for i, query in enumerate(row):
            for j, key in enumerate(keys[b].tolist()):
                same = abs(query) == abs(key)
                visible[b, i, j] = query == 0 or (same and (not causal or j <= i or key < 0))
    return visible


def embed(w, model, stack, ids, mask=None):
    """Tokens, positions, norm. mask: int [B, T] where positions count anew in every document.

    Sinusoids have entries up to 1, so the tokens' are multiplied by sqrt(d) (Vaswani et al. 2017, section 3.4).
    """
    d, rows = model.hidden_size, torch.arange(ids.shape[1]).expand_as(ids).clone()
    if mask is not None:
        for row, documents in zip(rows, mask.abs().tolist(), strict=True):
            for i in range(len(documents)):
                row[i] = row[i - 1] + 1 if i and documents[i] == documents[i - 1] else 0
    x = w["token_embedding.weight"][ids]
    if model.positions == "learned":
        x = x + w[f"{stack}.embeddings.positions.weight"][rows]
    elif model.positions == "sinusoidal":
        rates = torch.tensor([10000 ** (-2 * i / d) for i in range(d // 2)], dtype=torch.float64)
        angle = rows[..., None] * rates
        x = x * math.sqrt(d) + torch.cat([angle.sin(), angle.cos()], -1).float()  # the table is fp32
    return normalise(w, f"{stack}.embeddings.norm", model.norm, x, model.norm_eps) if model.embedding_norm else x


def run_stack(w, model, stack, x, visible, memory=None, memory_visible=None):
    """All layers of a stack and its final norm; also {"encoder.ffn": [what entered the norm of each layer]}."""
    kind, entered = model.block.kind, {}
    depth = model.encoder_layers if stack == "encoder" else model.decoder_layers
    alpha = residual_alpha(kind, stack, model.encoder_layers, model.decoder_layers)
    for index in range(depth):
        prefix = f"{stack}.layers.{index}."
        own = {name.removeprefix(prefix): value for name, value in w.items() if name.startswith(prefix)}
        s = Setting(
            model.num_heads,
            index + 1,
            depth,
            alpha,
            model.activation,
            model.norm,
            model.norm_eps,
            model.positions == "rotary",
        )
        x, norms = block(own, kind, x, s, visible, memory, memory_visible)
        for branch, value in norms.items():
            entered.setdefault(f"{stack}.{branch}", []).append(value)
    if kind in FINAL_NORM:
        x = normalise(w, f"{stack}.final_norm", model.norm, x, model.norm_eps)
    return x, entered


def network(w, model, batch, segmented=False):
    """A whole model of any family: model: ModelSection; batch: its inputs. Returns logits [B, T, V] and `entered`."""
    mask, ids = batch["attention_mask"], batch["input_ids"]
    documents = mask if segmented else None
    alone = torch.ones_like(mask)
    output = w["token_embedding.weight" if model.tie_embeddings else "output_projection.weight"]
    if model.family == "decoder":
        visible = who_sees_whom(mask if segmented else alone, mask if segmented else alone, causal=True)
        x, entered = run_stack(w, model, "decoder", embed(w, model, "decoder", ids, documents), visible)
        return x @ output.T, entered
    # Without segments a query of padding reads what the others read: the keys that are text.
    visible = who_sees_whom(mask if segmented else alone, mask, causal=False)
    x, entered = run_stack(w, model, "encoder", embed(w, model, "encoder", ids, documents), visible)
    if model.family == "encoder":
        gate = {"swiglu": "silu", "geglu": "gelu"}.get(model.activation, model.activation)
        x = normalise(w, "head.norm", model.norm, activate(gate, linear(w, "head.dense", x)), model.norm_eps)
        return x @ output.T + w["head.bias"], entered
    memory, ids = x, batch["decoder_input_ids"]
    target = batch["decoder_attention_mask"] if segmented else torch.ones_like(ids)
    x = embed(w, model, "decoder", ids, target if segmented else None)
    own, cross = who_sees_whom(target, target, causal=True), who_sees_whom(target, mask, causal=False)
    x, more = run_stack(w, model, "decoder", x, own, memory, cross)
    return x @ output.T, entered | more


def encoder_decoder(w, model, batch):
    """`network` of the default family."""
    return network(w, model, batch)


def summed_loss(logits, labels, label_smoothing=0.0, z_loss=0.0):
    """Sum over labels that are not -100, and their number.

    A label costs -(1 - e) log p(label) - e/V sum_v log p(v) + c (log sum_v exp(logit_v))^2.
    """
    partition = torch.log(torch.exp(logits).sum(-1))
    logp = logits - partition[..., None]
    real = labels != -100
    picked = logp.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    cost = -(1 - label_smoothing) * picked - label_smoothing * logp.sum(-1) / logits.shape[-1]
    return ((cost + z_loss * partition**2) * real).sum(), int(real.sum())
