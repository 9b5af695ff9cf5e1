"""Over-smoothing: whether the tokens of a sample become alike with depth (Bamboo, arXiv 2205.10505)."""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.monitors.layer_outputs import Content, LayerOutputs

TINY = torch.finfo(torch.float32).tiny


class OverSmoothing(LayerOutputs):
    """token_cosine: 1/(n(n-1)) sum_{i != j} <x_i, x_j> / (|x_i| |x_j|), the mean cosine of two tokens of a sample.

    high_frequency_ratio: ||X - mean over tokens(X)||_F / ||X||_F.
    """

    figures = ("token_cosine", "high_frequency_ratio")

    def measure(self, x: Tensor, content: Content) -> tuple[Tensor, ...]:
        n = content.tokens
        norms = torch.linalg.vector_norm(x, dim=-1)
        # sum_{i,j} <u_i, u_j> = |sum_i u_i|^2, without the n x n matrix; n of these have i = j.
        unit_sum = norms.clamp(min=TINY).reciprocal()[..., None, :] @ x
        cosine = (unit_sum.square().sum((-2, -1)) - n) / (n * (n - 1))
        cosine = cosine.clamp(min=-1 / (n - 1), max=torch.ones_like(n))  # what rounding takes beyond the limits
        mean = x.sum(-2, keepdim=True) / n[:, None, None]
        rest = torch.linalg.vector_norm(x - mean, dim=-1) * content.mask[..., 0]
        return cosine, (rest.square().sum(-1) / norms.square().sum(-1)).sqrt().clamp(max=1.0)
