"""Which row of a figure a parameter counts in: its layer and part of the layer, or what stands outside the stacks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pretrain.models.layers import ModelSpec
from pretrain.models.parameters import parameter_roles, row_group
from pretrain.monitors.signals import Rows, stack_depths

BY_ROLE = ("norms", "gains")
"""Parts of a layer whose parameters stand all over it; the others are the block's own modules."""
SUBLAYERS = ("self_attention", "cross_attention", "ffn")


def sublayer_of(name: str) -> tuple[str, str]:
    """Split off the sublayer: "ffn_gain" -> ("ffn", "gain"); a name that begins with no sublayer's has an empty one."""
    for sublayer in SUBLAYERS:
        if name.startswith(f"{sublayer}_"):
            return sublayer, name[len(sublayer) + 1 :]
    return "", name


def part_of(name: str, role: str) -> str:
    """A layer's part by a parameter's name within the layer: "ffn.fc1.weight" -> "ffn"; QK-norms are norms too."""
    return role if role in BY_ROLE else name.split(".")[0]


def parts_of(layer: nn.Module) -> list[str]:
    """All parts of one layer, its modules first: ["self_attention", "ffn", "norms"]."""
    found = {part_of(name, role) for name, role in parameter_roles(layer).items()}
    modules = [name for name, _ in layer.named_children() if name in found and name not in BY_ROLE]
    return modules + [part for part in BY_ROLE if part in found]


def edge_layers(spec: ModelSpec) -> Iterator[tuple[str, nn.Module]]:
    """(stack, layer) of the first and the last layer of each stack, on the meta device: designs differ there alone."""
    depths = stack_depths(spec)
    for layer in spec.layers:
        stack, row = row_group(layer.name + ".x")
        if ".layers." in layer.name and row in (0, depths[stack] - 1):
            with torch.device("meta"):
                module = layer.factory()
            yield stack, module


class ParameterRows:
    """One row for each part of each layer, and for embeddings, final norms and head; every parameter is in one.

    A parallel block has the parts "in_proj" and "out_proj": its matrices belong to attention and FFN at once.

    Args:
        spec: the model; its first and last layer of a stack show which parts the layers have.
    """

    def __init__(self, spec: ModelSpec):
        self.depths = stack_depths(spec)
        self.parts: dict[str, list[str]] = {}
        for stack, layer in edge_layers(spec):
            known = self.parts.setdefault(stack, [])
            known += [part for part in parts_of(layer) if part not in known]
        self.rows, self.shown = self._rows(wholes=False), self._rows(wholes=True)

    def _rows(self, wholes: bool) -> Rows:
        sizes: dict[str, int] = {}
        for group, depth in self.depths.items():
            parts = self.parts.get(group, [])
            if wholes or not parts:
                sizes[group] = depth
            sizes |= {f"{group}.{part}": depth for part in parts}
        return Rows.of(sizes)

    def index(self, name: str, role: str) -> int:
        """Row of a canonical name of this role (`parameter_roles`)."""
        group, row = row_group(name)
        if group not in self.parts:
            return self.rows.index(group, row)
        own = name.removeprefix(f"{group}.layers.{row}.")
        return self.rows.index(f"{group}.{part_of(own, role)}", row)

    def with_wholes(self, sums: Tensor) -> Tensor:
        """[rows] -> [rows shown]: before the parts of a stack's layers what they add up to, layer by layer."""
        found = []
        pieces = iter(sums.split([size for _, size in self.rows.groups.values()]))
        for group in self.depths:
            parts = [next(pieces) for _ in self.parts.get(group, [group])]
            found += [torch.stack(parts).sum(0), *parts] if group in self.parts else parts
        return torch.cat(found)
