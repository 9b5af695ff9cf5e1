"""A run of consecutive layers as one module: the whole model, or one pipeline stage of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretrain.blocks.init import initialise
from pretrain.models.layers import LayerSpec, ModelSpec, State


@dataclass
class Reached:
    """How far a rank is within its layers. A plain object: setting a module's own attributes is far dearer."""

    layer: str = ""
    """Canonical name of the layer entered last."""
    backward: bool = False
    passes: int = 0
    """Forward passes begun."""
    marks: int = 0
    """Changes with every layer."""


class LayerList(nn.Module):
    """Layers [start, stop) of a model, built, with canonical parameter names in its state dict.

    Args:
        spec: the whole model's descriptors.
        start, stop: which layers; all of them by default.
        seed: seeds the initialisation together with each parameter's name; None leaves parameters unset
            (a checkpoint will fill them, or the meta device holds them).
        checkpoint_every: recompute in the backward pass all activations but those entering every k-th layer;
            0 keeps all.
        placed: called with every module that is built and initialised, before the next one is built (to shard it).
    """

    def __init__(
        self,
        spec: ModelSpec,
        start: int = 0,
        stop: int | None = None,
        seed: int | None = None,
        checkpoint_every: int = 0,
        placed: Callable[[nn.Module], None] | None = None,
    ):
        super().__init__()
        self.specs = spec.layers[start:stop]
        self.checkpoint_every = checkpoint_every
        self.reached = Reached()
        """For whoever watches from another thread."""
        self._placed = placed
        tie_keys = dict.fromkeys(layer.tie_key for layer in self.specs if layer.tie_key)
        for key in tie_keys:
            self._place(key, spec.shared[key](), seed)
        self._shared = {key: self.get_submodule(key) for key in tie_keys}
        self._steps: list[tuple[LayerSpec, nn.Module]] = []
        for layer in self.specs:
            module = layer.factory()
            self._place(layer.name, module, seed)
            self._steps.append((layer, module))

    def _place(self, name: str, module: nn.Module, seed: int | None) -> None:
        """Register `module` at its dotted canonical name and initialise it."""
        *folders, leaf = name.split(".")
        parent: nn.Module = self
        for folder in folders:
            if not hasattr(parent, folder):
                parent.add_module(folder, nn.Module())
            parent = getattr(parent, folder)
        parent.add_module(leaf, module)
        if seed is not None:
            initialise(module, name, seed)
        if self._placed is not None:
            self._placed(module)

    def forward(self, state: State) -> State:
        """The first layer's state to the last layer's."""
        self.reached.passes += 1
        if not self.checkpoint_every or not torch.is_grad_enabled():
            return self.run(0, len(self._steps), *state)
        for first in range(0, len(self._steps), self.checkpoint_every):
            # Dropout is keyed, so a recomputed forward needs no saved RNG state.
            state = checkpoint(
                self.run, first, first + self.checkpoint_every, *state, use_reentrant=False, preserve_rng_state=False
            )
        return state

    def run(self, first: int, last: int, *state: Tensor) -> State:
        """Layers first..last-1 of this list, counted from its own start."""
        reached = self.reached
        for layer, module in self._steps[first:last]:
            reached.layer, reached.backward = layer.name, False
            reached.marks += 1
            if layer.tie_key is None:
                state = layer.apply(module, state)
            else:
                state = layer.apply(module, state, self._shared[layer.tie_key].weight)
        return state

    def built_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """(canonical name, module) in order of execution; shared modules are not among them."""
        return ((layer.name, module) for layer, module in self._steps)

    def shared_modules(self) -> dict[str, nn.Module]:
        """Tie key -> module, for the ties that these layers read."""
        return dict(self._shared)
