"""Token and position tables."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pretrain.blocks.init import GeneratorFor, normal


class Table(nn.Module):
    """A learned table of rows [rows, d], N(0, 1/d) at the start (fairseq's choice, as DeepNet's code)."""

    def __init__(self, rows: int, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, hidden_size))

    @torch.no_grad()
    def initialise(self, generator: GeneratorFor) -> None:
        normal(self.weight.shape[1] ** -0.5)(self.weight, generator("weight"))


class LearnedPositions(Table):
    """Learned absolute positions: the rows 0..T-1."""

    def forward(self, length: int) -> Tensor:
        return self.weight[:length]
