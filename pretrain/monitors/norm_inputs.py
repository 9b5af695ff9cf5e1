"""Root mean square of what enters each LayerNorm.

||dLN/dx|| = O(sqrt(d) / ||x||) (DeepNet, section 3): a growing input is a vanishing gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pretrain.models.layers import ModelSpec
from pretrain.models.parameters import row_group
from pretrain.monitors.signals import Rows, Signal, stack_depths
from pretrain.parallel.engine import Engine

BRANCHES = ("self_attention", "cross_attention", "ffn")


class NormInputs(Signal):
    """RMS over samples, positions and width, a row a layer and branch; padding included, recomputation not."""

    name = "norm_input_rms"

    def __init__(self, spec: ModelSpec):
        stacks = [group for group in stack_depths(spec) if group in ("encoder", "decoder")]
        depths = stack_depths(spec)
        self.rows = Rows.of(
            {
                f"{stack}.{branch}": depths[stack]
                for stack in stacks
                for branch in BRANCHES
                if branch != "cross_attention" or (stack == "decoder" and "encoder" in stacks)
            }
        )

        self.handles: list[Any] = []

    def prepare(self, engine: Engine) -> None:
        self.squares: dict[int, Tensor] = {}
        self.elements: dict[int, int] = {}
        for handle in self.handles:  # left by a try of this step that was thrown away
            handle.remove()
        self.handles = []
        for layer, module in engine.layers.built_layers():
            stack, row = row_group(layer + ".x")
            for branch in BRANCHES:
                norm = getattr(module, f"{branch}_norm", None)
                if norm is not None:
                    index = self.rows.index(f"{stack}.{branch}", row)
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

    def collect(self, engine: Engine) -> tuple[Tensor, Tensor]:
        for handle in self.handles:
            handle.remove()
        sums, counts = self.zeros(), self.zeros()
        if self.squares:
            rows = torch.tensor(list(self.squares))
            sums[rows] = torch.stack(list(self.squares.values())).double().cpu()
            counts[rows] = torch.tensor([self.elements[row] for row in self.squares], dtype=torch.float64)
        return sums, counts

    def value(self, sums: Tensor, counts: Tensor) -> Tensor:
        return (sums / counts.clamp(min=1)).sqrt()
