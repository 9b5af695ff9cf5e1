"""L2 norm of the weights with which a step begins: ||theta_{t-1}||."""

from __future__ import annotations

from torch import Tensor

from pretrain.monitors.parameter_chunks import Chunk
from pretrain.monitors.parameters import Norm


class WeightNorm(Norm):
    """Of the fp32 masters at which the step's gradient is taken."""

    name = "weight_norm"

    def before_step(self, chunk: Chunk, weights: Tensor) -> None:
        self.kept[chunk.first] = chunk.squares(weights)

    def after_step(self, chunk: Chunk, updates: int) -> Tensor:
        return self.kept.pop(chunk.first)
