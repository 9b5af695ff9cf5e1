"""How far Adam's second moment lags behind the gradient: StableAdamW's RMS (Wortsman et al. 2023, arXiv 2304.13013).

RMS_t = sqrt(mean(g_t^2 / max(v_t, eps^2))): about 1 while the gradient is what v_t expects, above it when the gradient
has grown faster than v_t, and then Adam's step is too long. It rises a few steps before a loss spike.
"""

from __future__ import annotations

from torch import Tensor

from pretrain.config.schema import OptimizerSection
from pretrain.monitors.gradient_norm import GradientNorm
from pretrain.monitors.parameter_chunks import Chunk
from pretrain.monitors.parameters import Measure, Sums
from pretrain.parallel.norms import clip_divisor


class AdamRMS(Measure):
    """g_t as Adam gets it, clipped, and v_t after the step, free of its bias towards 0. Beside gradient_norm.

    Args:
        optimizer: its betas, eps and clip_norm.
    """

    name = "adam_rms"

    def __init__(self, optimizer: OptimizerSection):
        super().__init__()
        self.optimizer = optimizer

    def before_update(self, chunk: Chunk, gradients: Tensor) -> None:
        self.kept[chunk.first] = gradients

    def after_step(self, chunk: Chunk, updates: int) -> Tensor:
        # g^2 / max(v / u, eps^2) = u g^2 / max(v, u eps^2) with u = 1 - beta2^t, of Adam's bias correction
        u = 1.0 - self.optimizer.betas[1] ** updates
        root = chunk.second_moments().clamp_(min=u * self.optimizer.eps**2).sqrt_()
        return u * chunk.squares(self.kept.pop(chunk.first).div_(root))

    def value(self, sums: Sums) -> Tensor:
        # Clipping is one factor for all gradients, known when they have been summed up over all ranks.
        norm, clip = sums.model[GradientNorm.name] ** 0.5, self.optimizer.clip_norm
        return (sums.rows[self.name] / sums.elements).sqrt() / clip_divisor(norm, clip)
