"""The largest gain of a layer's QK-norms, in magnitude.

Normalised queries and keys bound the logits: |logit| <= sqrt(d_h) max|gain_q| max|gain_k| (ViT-22B, arXiv 2302.05442,
equation 3, with RMS-normalised rows). Where the gains grow, the bound goes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pretrain.models.layers import ModelSpec
from pretrain.models.parameters import row_group
from pretrain.monitors.parameter_rows import edge_layers, sublayer_of
from pretrain.monitors.signals import NOTHING, Part, Profiles, Rows, Signal, stack_depths
from pretrain.parallel.engine import Engine, Shard


def gains_of(layer: nn.Module) -> Iterator[tuple[str, str]]:
    """(name within the layer, sublayer) of the gains of a layer's QK-norms."""
    for name, _ in layer.named_parameters():
        if name.endswith((".q_norm.weight", ".k_norm.weight")):
            yield name, sublayer_of(name.replace(".", "_"))[0]


class QKNormGains(Signal):
    """After the step. Nothing is shown, and no shard read, of a model without QK-norm.

    Args:
        spec: the model.
    """

    def __init__(self, spec: ModelSpec):
        depths = stack_depths(spec)
        groups = [(stack, sublayer) for stack, layer in edge_layers(spec) for _, sublayer in gains_of(layer)]
        self.rows = Rows.of({f"{stack}.{sublayer}": depths[stack] for stack, sublayer in groups})
        self.shards: list[Shard] | None = None
        """The gains of this rank."""
        self.where = torch.zeros(0, dtype=torch.long)
        """Their rows."""

    def collect(self, engine: Engine) -> Part:
        largest = torch.full((self.rows.total,), -torch.inf, dtype=torch.float64)
        if self.rows.groups and self.shards is None:
            rows = dict(self._rows(engine))
            self.shards = [shard for shard in engine.owned_shards() if shard.name in rows]
            self.where = torch.tensor([rows[shard.name] for shard in self.shards], dtype=torch.long)
        if self.shards:
            found = torch.stack(torch._foreach_norm([shard.weight for shard in self.shards], torch.inf))
            largest.scatter_reduce_(0, self.where, found.double().cpu(), "amax")
        return Part(NOTHING, largest)

    def _rows(self, engine: Engine) -> Iterator[tuple[str, int]]:
        for layer, module in engine.layers.built_layers():
            stack, row = row_group(layer + ".x")
            for name, sublayer in gains_of(module):
                yield f"{layer}.{name}", self.rows.index(f"{stack}.{sublayer}", row)

    def profiles(self, sums: Tensor, maxima: Tensor) -> Profiles:
        if not self.rows.groups:
            return {}
        return {"qk_norm_gain_max": self.rows.split(torch.where(maxima >= 0, maxima, torch.nan))}
