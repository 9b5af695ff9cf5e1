"""Root mean square of what enters each norm of the blocks, and its growth since step 1.

||dLN/dx|| = O(sqrt(d) / ||x||) (DeepNet, section 3): a growing input is a vanishing gradient.
"""

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


class NormInputs(Signal):
    """RMS over samples, positions and width, a row a layer and norm; padding included, recomputation not.

    Where a design leaves out the norm of a layer, the row shows what would have entered it. The growth is there from
    step 1 on, also after a resume; not where step 1 was not sampled.
    """

    def __init__(self, spec: ModelSpec):
        self.rows = part_rows(spec, norms_of)
        self.hooks = Hooks()
        self.squares: Found = []
        self.elements: Counter[int] = Counter()
        self.first: dict[str, list[float]] | None = None
        """The RMS at step 1."""
        self.is_first = False

    def before_step(self, engine: Engine) -> None:
        self.is_first = self.first is None and engine.optimizer_step_count() == 0
        self.squares, self.elements = [], Counter()
        self.hooks.remove()  # left by a try of this step that was thrown away
        for row, _, norm in built_parts(engine.layers, self.rows, norms_of):
            self.hooks.add(norm.register_forward_pre_hook(self._listener(row)))

    def _listener(self, row: int) -> Any:
        def listen(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if module.training and not recomputing():
                x = inputs[0].detach()
                self.squares.append((row, x.float().square().sum()))
                self.elements[row] += x.numel()

        return listen

    def collect(self, engine: Engine) -> Part:
        self.hooks.remove()
        squares, self.squares = add_up(self.squares, [self.rows.total]), []
        elements = torch.tensor([self.elements[row] for row in range(self.rows.total)], dtype=torch.float64)
        return Part(torch.cat([squares, elements]), NOTHING)

    def profiles(self, sums: Tensor, maxima: Tensor) -> Profiles:
        squares, elements = sums.chunk(2)
        rms = self.rows.split((squares / elements.clamp(min=1)).sqrt())
        if self.is_first:
            self.first = rms
        if self.first is None:
            return {"norm_input_rms": rms}
        growth = {
            group: [now / then if then else float("nan") for now, then in zip(values, self.first[group], strict=True)]
            for group, values in rms.items()
        }
        return {"norm_input_rms": rms, "norm_input_growth": growth}

    def state_dict(self) -> dict[str, Any]:
        return {} if self.first is None else {"first": self.first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.first = state.get("first")
