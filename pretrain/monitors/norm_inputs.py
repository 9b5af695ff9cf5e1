"""Root mean square of what enters each norm of the blocks.

||dLN/dx|| = O(sqrt(d) / ||x||) (DeepNet, section 3): a growing input is a vanishing gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pretrain.blocks.base import Block
from pretrain.models.layers import ModelSpec
from pretrain.models.parameters import row_group
from pretrain.monitors.signals import NOTHING, Part, Profiles, Rows, Signal, stack_depths
from pretrain.parallel.engine import Engine


class NormInputs(Signal):
    """RMS over samples, positions and width, a row a layer and norm; padding included, recomputation not.

    Where a design leaves out the norm of a layer, the row shows what would have entered it.
    """

    def __init__(self, spec: ModelSpec):
        depths = stack_depths(spec)
        sizes: dict[str, int] = {}
        for layer in spec.layers:
            if layer.name.endswith(".layers.0"):  # has the names that all layers of its stack have
                stack, _ = row_group(layer.name + ".x")
                with torch.device("meta"):
                    names = norms_of(layer.factory())
                sizes |= {f"{stack}.{name}": depths[stack] for name in names}
        self.rows = Rows.of(sizes)
        self.handles: list[Any] = []

    def before_step(self, engine: Engine) -> None:
        self.squares: dict[int, Tensor] = {}
        self.elements: dict[int, int] = {}
        for handle in self.handles:  # left by a try of this step that was thrown away
            handle.remove()
        self.handles = []
        for layer, module in engine.layers.built_layers():
            stack, row = row_group(layer + ".x")
            for name, norm in norms_of(module).items():
                index = self.rows.index(f"{stack}.{name}", row)
                self.handles.append(norm.register_forward_pre_hook(self._listener(index)))

    def _listener(self, index: int) -> Any:
        def listen(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if not module.training or torch._C._current_graph_task_id() != -1:
                return  # a validation, or inside a backward pass: an activation is being recomputed
            x = inputs[0].detach().float()
            square = x.square().sum()
            self.squares[index] = self.squares[index] + square if index in self.squares else square
            self.elements[index] = self.elements.get(index, 0) + x.numel()

        return listen

    def collect(self, engine: Engine) -> Part:
        for handle in self.handles:
            handle.remove()
        sums, counts = torch.zeros(2, self.rows.total, dtype=torch.float64)
        if self.squares:
            rows = torch.tensor(list(self.squares))
            sums[rows] = torch.stack(list(self.squares.values())).double().cpu()
            counts[rows] = torch.tensor([self.elements[row] for row in self.squares], dtype=torch.float64)
        return Part(torch.cat([sums, counts]), NOTHING)

    def profiles(self, sums: Tensor, maxima: Tensor) -> Profiles:
        squares, elements = sums.chunk(2)
        return {"norm_input_rms": self.rows.split((squares / elements.clamp(min=1)).sqrt())}


def norms_of(module: nn.Module) -> dict[str, nn.Module]:
    """A block's norms by name; what is no block has none that are asked for here."""
    return module.norms() if isinstance(module, Block) else {}
