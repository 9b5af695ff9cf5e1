"""Layer descriptors: the only view of a model that the engines, the planner and the partition have.

A descriptor builds its layer when asked, so that a rank builds only what it owns, also at 1000 layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class LayerSpec:
    """One layer of the list.

    Args:
        name: canonical prefix of its parameters, e.g. "decoder.layers.12".
        factory: builds the module that owns the layer's parameters, unset.
        apply: runs the module on one flat tuple of tensors and gives the next: `apply(module, state)`, or
            `apply(module, state, weight)` where `tie_key` is set, with the weight of that shared module.
        cost: forward FLOPs a sample; weighs the stage partition, together with
        branches: how many sublayers it runs; each takes a fixed time beside its FLOPs.
        tie_key: the shared module this layer reads.
    """

    name: str
    factory: Callable[[], nn.Module]
    apply: Callable[..., State]
    cost: float = 0.0
    branches: int = 0
    tie_key: str | None = None


@dataclass(frozen=True, eq=False)
class ModelSpec:
    """A model as data; hashed by identity.

    Args:
        layers: in order of execution.
        shared: modules with one `weight`, by tie key; the key is also their canonical prefix.
        inputs: the batch's keys that make the first layer's state, in order.
        labels: the batch's labels follow them, where it has any: the head computes what they ask for only.
        preferred_cuts: indices before which a stage boundary costs least (the encoder/decoder border).
    """

    layers: tuple[LayerSpec, ...]
    shared: Mapping[str, Callable[[], nn.Module]]
    inputs: tuple[str, ...]
    preferred_cuts: tuple[int, ...] = field(default=())
    labels: bool = False

    def state(self, batch: dict[str, Tensor]) -> State:
        """The first layer's input for one micro-batch."""
        labels = ("labels",) if self.labels and "labels" in batch else ()
        return tuple(batch[key] for key in (*self.inputs, *labels))
