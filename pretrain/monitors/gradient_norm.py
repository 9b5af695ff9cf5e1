"""L2 norm of the gradient before clipping: ||g||.

A collapse follows a spike of it by a few steps, and the spike usually begins in the embedding (GLM-130B,
arXiv 2210.02414, section 3.3).
"""

from __future__ import annotations

from torch import Tensor

from pretrain.monitors.parameter_chunks import Chunk
from pretrain.monitors.parameters import Norm


class GradientNorm(Norm):
    """Of the global batch's mean loss, without the loss scale of fp16. The rows' squares add up to grad_norm^2."""

    name = "gradient_norm"

    def before_update(self, chunk: Chunk, gradients: Tensor) -> None:
        self.kept[chunk.first] = chunk.squares(gradients)

    def after_step(self, chunk: Chunk, updates: int) -> Tensor:
        return self.kept.pop(chunk.first)
