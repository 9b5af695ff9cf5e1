"""A stand-in for an engine, whose state lies in flat buffers as DeepSpeed's does, and checkpoints of it."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from pretrain.checkpoint.save import Saver
from pretrain.parallel.engine import Shard
from pretrain.state.index import MOMENTS, WEIGHT
from pretrain.state.keep import Keep
from pretrain.state.reader import Checkpoint

QUANTITIES = (WEIGHT, *MOMENTS)
TEXTS = {"config.yaml": b"name: by_hand\n", "tokenizer.model": b"\0pieces\1"}
TRAINING = {"callbacks": {}}


class HandEngine:
    """Parameters of two groups in turn (as decayed and not decayed ones are), each group one flat buffer a quantity."""

    def __init__(self, layers: int = 3, width: int = 8):
        self.names = [f"layers.{layer}.{part}" for layer in range(layers) for part in ("fc.weight", "fc.bias")]
        self.shapes = {name: (width, width) if name.endswith("weight") else (width,) for name in self.names}
        self.flat: dict[tuple[str, bool], torch.Tensor] = {}
        for group in (True, False):
            numel = sum(torch.Size(self.shapes[name]).numel() for name in self.names if self._decays(name) is group)
            for quantity in QUANTITIES:
                self.flat[quantity, group] = torch.zeros(numel)
        self.asked = 0

    @staticmethod
    def _decays(name: str) -> bool:
        return name.endswith("weight")

    def set(self, value: float) -> None:
        """Weights value + 0, 1, 2 ... in flat order; the moments 1000 and 2000 more."""
        for (quantity, group), flat in self.flat.items():
            start = value + 1000 * QUANTITIES.index(quantity) + 0.5 * group
            flat.copy_(torch.arange(start, start + flat.numel(), dtype=torch.float64))

    def owned_shards(self, replicas: bool = False):
        self.asked += 1
        at = {True: 0, False: 0}
        for name in self.names:
            group, numel = self._decays(name), torch.Size(self.shapes[name]).numel()
            views = {q: self.flat[q, group].detach().narrow(0, at[group], numel) for q in QUANTITIES}
            at[group] += numel
            yield Shard(name, self.shapes[name], 0, numel, **views, gradient=lambda: None)

    def holds(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint is of the state as it is now."""
        return all(
            torch.equal(checkpoint.read(shard.name, quantity).view(-1), getattr(shard, quantity))
            for shard in self.owned_shards()
            for quantity in QUANTITIES
        )


def saver(checkpoints: Path, keep: Keep | None = None, tell=None) -> Saver:
    return Saver(checkpoints, keep or Keep(3), {"processes": 1}, TEXTS, tell or (lambda saved: None))


def save(saver: Saver, engine: HandEngine, step: int) -> Checkpoint:
    """Save the state as `engine.set(step)` makes it, to the end."""
    engine.set(step)
    saver.begin(step, engine, TRAINING, time.perf_counter())
    saver.wait()
    return Checkpoint(saver.checkpoints / f"step_{step:08d}")
