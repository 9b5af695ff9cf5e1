"""Marks of progress: which layer this rank entered last, in which pass of which micro-batch. Read from a thread."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pretrain.models.layer_list import LayerList, Reached

BACKWARD_MARKS = 32
"""Layers of a stage that mark the backward pass; a gradient hook costs some 10 microseconds."""


class Marks:
    """Reads what a LayerList says of itself, which costs nothing measurable; adds marks of the backward pass.

    Nothing is locked: a reader in another thread may see a mark that is one layer old.
    """

    def __init__(self) -> None:
        self.reached = Reached()
        self._passes = 0
        self._handles: list[Any] = []

    @property
    def micro_batch(self) -> int:
        """Forward passes begun since `begin_step`."""
        return self.reached.passes - self._passes

    @property
    def direction(self) -> str:
        return ("backward" if self.reached.backward else "forward") if self.reached.layer else ""

    def listen(self, layers: LayerList) -> None:
        """Follow these layers; of the backward pass at most BACKWARD_MARKS of them, evenly spread."""
        self.reached = layers.reached
        modules = list(layers.built_layers())
        for name, module in modules[:: -(-len(modules) // BACKWARD_MARKS) or 1]:
            self._handles.append(module.register_forward_pre_hook(self._listener(name)))

    def begin_step(self) -> None:
        self.reached.layer, self.reached.backward, self._passes = "", False, self.reached.passes

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _listener(self, name: str) -> Any:
        reached = self.reached

        def backward(gradient: Tensor) -> None:
            reached.layer, reached.backward = name, True
            reached.marks += 1

        def forward(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor) and inputs[0].requires_grad:
                inputs[0].register_hook(backward)

        return forward
