"""What the output of every layer of a stack says on the probe."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from pretrain.models.layers import ModelSpec
from pretrain.models.parameters import row_group
from pretrain.monitors.blocks import layer_rows
from pretrain.monitors.listening import Found, Hooks, Pile, add_up
from pretrain.monitors.probe import Probe
from pretrain.monitors.signals import NOTHING, Part, Profiles, Signal
from pretrain.monitors.tokens import content_tokens, of_probe
from pretrain.parallel.engine import Engine


class Content(NamedTuple):
    """Which tokens of n samples count; fp32 factors."""

    mask: Tensor
    """[n, T, 1]: 1 for a token, 0 for padding and CLS."""
    tokens: Tensor
    """[n]: their number."""
    counted: Tensor
    """bool [n]: samples with two tokens or more; what comes of the others is not read."""

    @classmethod
    def of(cls, content: Tensor) -> Content:
        """content: bool [n, T]."""
        tokens = content.sum(1)
        return cls(content[:, :, None].float(), tokens.float(), tokens > 1)

    def to(self, device: torch.device) -> Content:
        return Content(*(part.to(device) for part in self))


class LayerOutputs(Signal):
    """Figures of single samples, averaged over the probe's; a row a layer.

    Padding and CLS are left out, and so are samples of fewer than two other tokens; packed documents count as one.
    """

    wants_probe = True
    figures: ClassVar[tuple[str, ...]]

    def __init__(self, spec: ModelSpec):
        self.rows = layer_rows(spec)
        self.hooks = Hooks()
        self.piles: dict[str, list[Pile]] = {}
        """Of each stack, one a micro-batch."""
        self.found: Found = []

    @abstractmethod
    def measure(self, x: Tensor, content: Content) -> tuple[Tensor, ...]:
        """Each of `figures` [layers, n] from x [layers, n, T, d], fp32, 0 where no token counts."""

    def before_probe(self, engine: Engine, probe: Probe) -> None:
        self.hooks.remove()
        self.found = []
        for stack in self.rows.groups:
            tokens = of_probe(probe, content_tokens, stack)
            self.piles[stack] = [Pile(partial(self._measure, Content.of(content))) for content in tokens]
        for layer, module in engine.layers.built_layers():
            stack, row = row_group(layer + ".x")
            if stack in self.piles:
                listener = self._listener(self.rows.index(stack, row), self.piles[stack], probe.rows)
                self.hooks.add(module.register_forward_hook(listener))

    def _listener(self, row: int, piles: Sequence[Pile], samples: Sequence[range]) -> Any:
        calls = itertools.count()

        def listen(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            call = next(calls)
            if n := len(samples[call]):
                piles[call].add(row, output[:n].numel(), output[:n])

        return listen

    def _measure(self, content: Content, rows: Sequence[int], outputs: Tensor) -> None:
        content = content.to(outputs.device)
        figures = self.measure(outputs.float().mul_(content.mask), content)  # a pile's own copy of them
        found = torch.stack((*figures, content.counted.expand_as(figures[0])))
        self.found.append((rows, found.where(content.counted, 0.0).sum(-1).T))

    def collect(self, engine: Engine) -> Part:
        self.hooks.remove()
        for piles in self.piles.values():
            for pile in piles:
                pile.clear()
        sums = add_up(self.found, [self.rows.total, len(self.figures) + 1])
        self.found, self.piles = [], {}
        return Part(sums.flatten(), NOTHING)

    def profiles(self, sums: Tensor, maxima: Tensor) -> Profiles:
        *figures, samples = sums.view(-1, len(self.figures) + 1).unbind(1)
        return {name: self.rows.split(total / samples) for name, total in zip(self.figures, figures, strict=True)}
