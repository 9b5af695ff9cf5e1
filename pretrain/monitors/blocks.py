"""Parts of the blocks that signals listen to, and the rows that they have in a figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from pretrain.blocks.base import Block
from pretrain.blocks.heads import AttentionHeads
from pretrain.models.layer_list import LayerList
from pretrain.models.layers import ModelSpec
from pretrain.models.parameters import row_group
from pretrain.monitors.signals import Rows, stack_depths

PartsOf = Callable[[nn.Module], Mapping[str, nn.Module]]
"""A layer's parts by name; none where it is no block."""


def norms_of(layer: nn.Module) -> dict[str, nn.Module]:
    """The norms on the residual stream, or the identities in their place."""
    return layer.norms() if isinstance(layer, Block) else {}


def attentions_of(layer: nn.Module) -> dict[str, AttentionHeads]:
    """self_attention, cross_attention."""
    return {name: part for name, part in layer.named_children() if isinstance(part, AttentionHeads)}


def first_layers(spec: ModelSpec) -> dict[str, nn.Module]:
    """Stack -> its layer 0, without memory: it has the parts that all layers of its stack have."""
    with torch.device("meta"):
        return {
            row_group(layer.name + ".x")[0]: layer.factory()
            for layer in spec.layers
            if layer.name.endswith(".layers.0")
        }


def layer_rows(spec: ModelSpec) -> Rows:
    """A row a layer: "encoder", "decoder"."""
    depths = stack_depths(spec)
    return Rows.of({stack: depths[stack] for stack in first_layers(spec)})


def part_rows(spec: ModelSpec, parts_of: PartsOf) -> Rows:
    """A row a layer and part: "encoder.self_attention", "encoder.ffn", ..."""
    depths = stack_depths(spec)
    sizes = {
        f"{stack}.{name}": depths[stack] for stack, layer in first_layers(spec).items() for name in parts_of(layer)
    }
    return Rows.of(sizes)


def built_parts(layers: LayerList, rows: Rows, parts_of: PartsOf) -> Iterator[tuple[int, str, nn.Module]]:
    """(row, group, part) of what this rank holds."""
    for name, layer in layers.built_layers():
        stack, index = row_group(name + ".x")
        for part_name, part in parts_of(layer).items():
            group = f"{stack}.{part_name}"
            yield rows.index(group, index), group, part
