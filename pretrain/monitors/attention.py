"""Attention logits and entropy on the probe, a row a layer, a value a head.

Logits that grow without bound make attention one-hot, its entropy falls to 0, and training diverges (ViT-22B, arXiv
2302.05442, section 2). A low entropy alone proves nothing: a head may look at one key for good.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from pretrain.blocks.heads import AttentionCore, AttentionHeads
from pretrain.models.layers import ModelSpec
from pretrain.monitors.blocks import attentions_of, built_parts, first_layers, part_rows
from pretrain.monitors.listening import Found, Hooks, Pile, add_up, largest
from pretrain.monitors.logits import Sight, logit_figures, visible
from pretrain.monitors.probe import Probe
from pretrain.monitors.signals import Part, Profiles, Signal
from pretrain.monitors.tokens import of_probe, real_tokens
from pretrain.parallel.engine import Engine


class View:
    """One micro-batch of the probe as one attention of every layer of a stack sees it.

    All layers of a stack are given the same masks (`models`), so who sees whom is worked out in the first one only.

    Args:
        tokens: bool [n, T], the queries that are no padding.
    """

    def __init__(self, tokens: Tensor):
        self.tokens = tokens
        self.sight: Sight | None = None
        self.pile = Pile(self._measure)
        self.sums: Found = []
        self.maxima: Found = []
        self.counts: Found = []

    def add(self, row: int, causal: bool, q: Tensor, k: Tensor, mask: Tensor | None) -> None:
        """A layer's q, k and mask as in AttentionCore; rows beyond n are filler."""
        n = len(self.tokens)
        if n == 0:
            return
        if self.sight is None:
            queries, mask = self.tokens.to(q.device), None if mask is None else mask[:n]
            self.sight = Sight.of(visible(queries, k.shape[2], mask, causal))
        self.pile.add(row, q.shape[1] * self.sight.hidden.numel(), q[:n], k[:n])

    def _measure(self, rows: Sequence[int], q: Tensor, k: Tensor) -> None:
        assert self.sight is not None
        sums, maxima = logit_figures(q, k, self.sight)
        self.sums.append((rows, sums))
        self.maxima.append((rows, maxima))
        self.counts.append((rows, self.sight.counts.expand(len(rows), -1)))


class AttentionLogits(Signal):
    """Of softmax(q k^T / sqrt(d_h)), over the queries that are tokens and the keys that each of them sees.

    attention_logit_max: the largest |logit|; attention_logits_above_100: the share of pairs with |logit| > 100.
    attention_entropy_mean and attention_entropy_min: over queries, entropy / log(keys seen), from 0 (one-hot) to 1
    (uniform); queries that see one key are left out.
    """

    wants_probe = True

    def __init__(self, spec: ModelSpec):
        self.rows = part_rows(spec, attentions_of)
        attentions = [part for layer in first_layers(spec).values() for part in attentions_of(layer).values()]
        self.heads = max(attention.num_heads for attention in attentions)
        self.hooks = Hooks()
        self.views: dict[str, list[View]] = {}
        """Of each group, one a micro-batch."""

    def before_probe(self, engine: Engine, probe: Probe) -> None:
        self.hooks.remove()
        for group in self.rows.groups:
            stack, _ = group.split(".")
            self.views[group] = [View(tokens) for tokens in of_probe(probe, real_tokens, stack)]
        for row, group, attention in built_parts(engine.layers, self.rows, attentions_of):
            listener = self._listener(row, self.views[group])
            self.hooks.add(cast(AttentionHeads, attention).core.register_forward_pre_hook(listener))

    def _listener(self, row: int, views: list[View]) -> Any:
        calls = itertools.count()

        def listen(core: AttentionCore, inputs: tuple[Any, ...]) -> None:
            q, k, _, mask = inputs
            views[next(calls)].add(row, core.causal, q, k, mask)

        return listen

    def collect(self, engine: Engine) -> Part:
        self.hooks.remove()
        views = [view for views in self.views.values() for view in views]
        for view in views:
            view.pile.clear()
        rows, heads = self.rows.total, self.heads
        sums = add_up([found for view in views for found in view.sums], [rows, 2, heads])
        counts = add_up([found for view in views for found in view.counts], [rows, 2])
        maxima = largest([found for view in views for found in view.maxima], [rows, 2, heads])
        self.views = {}
        return Part(torch.cat([sums.flatten(), counts.flatten()]), maxima.flatten())

    def profiles(self, sums: Tensor, maxima: Tensor) -> Profiles:
        rows, heads = self.rows.total, self.heads
        large, entropy = sums[: rows * 2 * heads].view(rows, 2, heads).unbind(1)
        pairs, queries = sums[rows * 2 * heads :].view(rows, 2, 1).unbind(1)
        logit, minus_entropy = maxima.view(rows, 2, heads).unbind(1)
        figures = {
            "attention_logit_max": logit.where(pairs > 0, torch.nan),
            "attention_logits_above_100": (large / pairs).clamp(max=1.0),
            "attention_entropy_mean": (entropy / queries).clamp(max=1.0),
            "attention_entropy_min": (-minus_entropy).where(queries > 0, torch.nan),
        }
        return {name: self.rows.split(values) for name, values in figures.items()}
