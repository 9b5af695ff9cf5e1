"""Learned factors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pretrain.blocks.init import GeneratorFor


class Gain(nn.Module):
    """y = a * x with one learned number a, shape [1]; its role is "gains", which have no weight decay.

    Args:
        start: a at the start.
    """

    def __init__(self, start: float):
        super().__init__()
        self.start = start
        self.weight = nn.Parameter(torch.empty(1))

    @torch.no_grad()
    def initialise(self, generator: GeneratorFor) -> None:
        self.weight.fill_(self.start)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x
