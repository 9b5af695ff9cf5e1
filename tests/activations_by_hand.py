"""Figures of activations computed one query, one pair of tokens at a time, in the dtype of what is given."""

from __future__ import annotations

import math

import targets_equations as equations
import torch

ATTENTION = (
    "attention_logit_max",
    "attention_logits_above_100",
    "attention_entropy_mean",
    "attention_entropy_min",
)
OUTPUTS = ("token_cosine", "high_frequency_ratio", "effective_rank")


def attention(q, k, seen):
    """q [n, H, T, d_h], k [n, H, S, d_h], seen bool [n, T, S] -> {figure: [a value a head]}."""
    figures = {name: [] for name in ATTENTION}
    for head in range(q.shape[1]):
        logits, entropies = [], []
        for sample, query in seen.any(-1).nonzero().tolist():
            keys = k[sample, head][seen[sample, query]]
            row = keys @ q[sample, head, query] / math.sqrt(q.shape[-1])
            logits.append(row)
            if len(row) > 1:
                p = torch.exp(row - row.max()) / torch.exp(row - row.max()).sum()
                entropies.append(-sum(x * math.log(x) for x in p.tolist() if x) / math.log(len(row)))
        size = torch.cat(logits).abs()
        values = (
            float(size.max()),
            sum(x > 100 for x in size.tolist()) / len(size),
            sum(entropies) / len(entropies),
            min(entropies),
        )
        for name, value in zip(ATTENTION, values, strict=True):
            figures[name].append(value)
    return figures


def token_cosine(x):
    """x [tokens, d]: the mean over all pairs of different tokens."""
    n = len(x)
    pairs = [float(x[i] @ x[j] / (x[i].norm() * x[j].norm())) for i in range(n) for j in range(n) if i != j]
    return sum(pairs) / len(pairs)


def high_frequency_ratio(x):
    return float((x - x.mean(0)).norm() / x.norm())


def effective_rank(x):
    """From the eigenvalues of X X^T, the squares of the singular values."""
    values = torch.linalg.eigvalsh(x @ x.T).clamp(min=0).sqrt()
    p = (values / values.sum()).tolist()
    return math.exp(-sum(x * math.log(x) for x in p if x))


def outputs(x, content):
    """x [n, T, d], content bool [n, T] -> {figure: mean over the samples with two tokens or more}."""
    samples = [row[real] for row, real in zip(x, content, strict=True) if real.sum() > 1]
    measures = (token_cosine, high_frequency_ratio, effective_rank)
    return {
        name: sum(measure(sample) for sample in samples) / len(samples)
        for name, measure in zip(OUTPUTS, measures, strict=True)
    }


def tokens(batch):
    """{stack: bool [n, T], all but padding} by what the objectives say of their masks and labels."""
    real = batch["attention_mask"] != 0
    if "decoder_input_ids" not in batch:
        return {"encoder": real, "decoder": real}
    target = batch["decoder_attention_mask"] != 0 if "decoder_attention_mask" in batch else batch["labels"] != -100
    return {"encoder": real, "decoder": target}


def seen(batch, group, segmented):
    """bool [n, T, S] for "encoder.self_attention", ...: who sees whom, without the queries of padding."""
    source, stack = batch["attention_mask"], group.split(".")[0]
    if stack == "encoder" or "decoder_input_ids" not in batch:
        own = source
    else:
        own = batch["decoder_attention_mask"] if segmented else torch.ones_like(batch["decoder_input_ids"])
    keys = source if group.endswith("cross_attention") else own
    causal = group == "decoder.self_attention"
    if not segmented:  # one document; where causal, padding lies behind the text
        own, keys = torch.ones_like(own), torch.ones_like(own) if causal else keys
    return equations.who_sees_whom(own, keys, causal) & tokens(batch)[stack][:, :, None]


class Watched:
    """What a model in evaluation mode computes: q and k of each attention, the output of each layer.

    Args:
        layers: a LayerList.
        state: its first layer's.
    """

    def __init__(self, layers, state):
        self.queries, self.outputs, handles = {}, {}, []
        for layer, module in layers.built_layers():
            stack, _, index = layer.partition(".layers.")
            if not index:
                continue
            handles.append(module.register_forward_hook(self._keep_output(stack)))
            for name in ("self_attention", "cross_attention"):
                if hasattr(module, name):
                    core = getattr(module, name).core
                    handles.append(core.register_forward_pre_hook(self._keep_queries(f"{stack}.{name}")))
        with torch.no_grad():
            layers(state)
        for handle in handles:
            handle.remove()

    def _keep_output(self, stack):
        return lambda module, inputs, output: self.outputs.setdefault(stack, []).append(output)

    def _keep_queries(self, group):
        return lambda module, inputs: self.queries.setdefault(group, []).append(inputs[:2])

    def profiles(self, batch, content, segmented=False):
        """All figures over these samples: {figure: {group: [a value a layer]}}; content: {stack: bool [n, T]}."""
        found = {name: {} for name in (*ATTENTION, *OUTPUTS)}
        for group, layers in self.queries.items():
            visible = seen(batch, group, segmented)
            for q, k in layers:
                for name, value in attention(q, k, visible).items():
                    found[name].setdefault(group, []).append(value)
        for stack, layers in self.outputs.items():
            for x in layers:
                for name, value in outputs(x, content[stack]).items():
                    found[name].setdefault(stack, []).append(value)
        return found
