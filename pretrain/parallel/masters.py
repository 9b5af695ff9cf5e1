"""The exact fp32 initialisation in the master weights of a half-precision engine.

DeepSpeed casts a module to bf16 or fp16 and copies its masters from what the rounding left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from pretrain.blocks.init import initialise
from pretrain.models.layers import ModelSpec
from pretrain.parallel.engine import Engine


def fill_masters(engine: Engine, spec: ModelSpec, seed: int) -> None:
    """Put the weights that (seed, name) gives into the shards this rank owns, and publish them. Collective.

    Layers are built in fp32, used and dropped one after the other, so that memory holds one of them.
    """
    shards = {shard.name: shard for shard in engine.owned_shards(replicas=True)}
    for prefix, build in _modules(engine, spec):
        module = build()
        initialise(module, prefix, seed)
        for name, parameter in module.named_parameters(prefix):
            if shard := shards.get(name):
                shard.weight.copy_(parameter.detach().flatten()[shard.start : shard.stop])
    engine.publish_weights()


def _modules(engine: Engine, spec: ModelSpec) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """(canonical prefix, factory) of what this rank holds."""
    for key in engine.layers.shared_modules():
        yield key, spec.shared[key]
    for layer in engine.layers.specs:
        yield layer.name, layer.factory
