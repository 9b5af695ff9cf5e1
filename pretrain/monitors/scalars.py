"""The learned scalars of the layers: SAS's alpha, beta and gamma per head, ReZero's and other gains.

They say what a layer has become: the identity, a branch that is switched off, attention without its mixing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pretrain.models.layers import ModelSpec
from pretrain.models.parameters import parameter_roles, row_group
from pretrain.monitors.parameter_rows import edge_layers, sublayer_of
from pretrain.monitors.signals import NOTHING, Part, Profiles, Rows, Signal, stack_depths
from pretrain.parallel.engine import Engine, Shard


def scalars_of(layer: nn.Module) -> Iterator[tuple[str, str, str]]:
    """(name within the layer, figure, sublayer) of a layer's scalars, the sublayer empty where it belongs to none.

    "ffn_gain.weight" has the figure "scalar_gain" in "ffn", "self_attention.alpha" "scalar_alpha" in "self_attention".
    """
    for name, role in parameter_roles(layer).items():
        if role == "gains":
            sublayer, own = sublayer_of(name.removesuffix(".weight").replace(".", "_"))
            yield name, f"scalar_{own}", sublayer


class Scalars(Signal):
    """Values after the step, one by one where a layer has several (heads); NaN in a layer that lacks what others have.

    Nothing is shown, and no shard read, of a model that has none.

    Args:
        spec: the model.
    """

    def __init__(self, spec: ModelSpec):
        depths = stack_depths(spec)
        self.widths: dict[tuple[str, str], int] = {}
        """(figure, group) -> values a layer"""
        for stack, layer in edge_layers(spec):
            for name, figure, sublayer in scalars_of(layer):
                self.widths[figure, f"{stack}.{sublayer}".strip(".")] = layer.get_parameter(name).numel()
        sizes = {f"{figure} {group}": n * depths[group.split(".")[0]] for (figure, group), n in self.widths.items()}
        self.rows = Rows.of(sizes)
        self.shards: list[Shard] | None = None
        """The scalars of this rank."""
        self.where: list[int] = []
        """Where each of their elements goes."""

    def collect(self, engine: Engine) -> Part:
        sums = torch.zeros(2, self.rows.total, dtype=torch.float64)
        if self.widths and self.shards is None:
            places = dict(self._places(engine))
            self.shards = [shard for shard in engine.owned_shards() if shard.name in places]
            self.where = [places[shard.name] + i for shard in self.shards for i in range(shard.start, shard.stop)]
        if self.shards:
            values = torch.cat([shard.weight for shard in self.shards]).double().cpu()
            sums[:, self.where] = torch.stack([values, torch.ones_like(values)])
        return Part(sums.flatten(), NOTHING)

    def _places(self, engine: Engine) -> Iterator[tuple[str, int]]:
        for layer, module in engine.layers.built_layers():
            if ".layers." in layer:
                stack, row = row_group(layer + ".x")
                for name, figure, sublayer in scalars_of(module):
                    group = f"{stack}.{sublayer}".strip(".")
                    yield f"{layer}.{name}", self.rows.index(f"{figure} {group}", row * self.widths[figure, group])

    def profiles(self, sums: Tensor, maxima: Tensor) -> Profiles:
        values, counts = sums.view(2, -1)
        values = torch.where(counts > 0, values, torch.nan)
        found: Profiles = {}
        for (figure, group), width in self.widths.items():
            first, size = self.rows.groups[f"{figure} {group}"]
            layers = values[first : first + size]
            found.setdefault(figure, {})[group] = (layers.view(-1, width) if width > 1 else layers).tolist()
        return found
