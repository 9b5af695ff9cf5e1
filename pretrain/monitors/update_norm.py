"""L2 norm of one optimizer step's change of the weights: ||theta_t - theta_{t-1}||."""

from __future__ import annotations

from torch import Tensor

from pretrain.monitors.parameter_chunks import Chunk
from pretrain.monitors.parameters import Norm


class UpdateNorm(Norm):
    """All that the step did: Adam at the clipped gradient, and weight decay."""

    name = "update_norm"

    def before_step(self, chunk: Chunk, weights: Tensor) -> None:
        self.kept[chunk.first] = weights

    def after_step(self, chunk: Chunk, updates: int) -> Tensor:
        return chunk.squares(chunk.less_weights_(self.kept.pop(chunk.first)))
