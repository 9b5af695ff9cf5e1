"""Root mean square of the gradient that each norm of the blocks hands back to its input."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.models.layers import ModelSpec
from pretrain.monitors.blocks import built_parts, norms_of, part_rows
from pretrain.monitors.listening import Found, Hooks, add_up, recomputing
from pretrain.monitors.signals import NOTHING, Part, Profiles, Signal
from pretrain.parallel.engine import Engine


class NormGradients(Signal):
    """RMS of dL/dx through the norm alone (not through a skip around it), rows as of `NormInputs`.

    L is the mean loss over the target tokens of the global batch, the same in every layout; the mean square is over
    all samples, positions and width, padding included.
    """

    def __init__(self, spec: ModelSpec):
        self.rows = part_rows(spec, norms_of)
        self.hooks = Hooks()
        self.squares: Found = []
        self.elements: Counter[int] = Counter()

    def before_step(self, engine: Engine) -> None:
        self.scale = engine.backward_scale  # fp16 may change its part of it after the step
        self.squares, self.elements = [], Counter()
        self.hooks.remove()  # left by a try of this step that was thrown away
        for row, _, norm in built_parts(engine.layers, self.rows, norms_of):
            self.hooks.add(norm.register_forward_pre_hook(self._listener(row)))

    def _listener(self, row: int) -> Any:
        def catch(gradient: Tensor) -> None:
            self.squares.append((row, gradient.float().square().sum()))
            self.elements[row] += gradient.numel()

        def listen(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            # The backward pass goes through the first forward's graph, also where that keeps no activations: a
            # recomputed one only fills in what it lacks.
            if not module.training or recomputing():
                return None
            x = inputs[0].view_as(inputs[0])  # a name for it that nobody but the norm reads
            x.register_hook(catch)
            return (x, *inputs[1:])

        return listen

    def collect(self, engine: Engine) -> Part:
        self.hooks.remove()
        squares, self.squares = add_up(self.squares, [self.rows.total]), []
        elements = torch.tensor([self.elements[row] for row in range(self.rows.total)], dtype=torch.float64)
        return Part(torch.cat([squares / self.scale**2, elements]), NOTHING)

    def profiles(self, sums: Tensor, maxima: Tensor) -> Profiles:
        squares, elements = sums.chunk(2)
        return {"norm_input_gradient": self.rows.split((squares / elements.clamp(min=1)).sqrt())}
