"""Token and position tables."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.blocks.init import GeneratorFor, normal
from pretrain.blocks.positions import sinusoids


class Table(nn.Module):
    """A learned table of rows [rows, d], N(0, std^2) at the start; default 1/d (fairseq's choice, as DeepNet's)."""

    def __init__(self, rows: int, hidden_size: int, std: float | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, hidden_size))
        self.std = hidden_size**-0.5 if std is None else std

    @torch.no_grad()
    def initialise(self, generator: GeneratorFor) -> None:
        normal(self.std)(self.weight, generator("weight"))


class LearnedPositions(Table):
    """Learned absolute positions."""

    def forward(self, positions: int | Tensor) -> Tensor:
        """Rows 0..T-1 for a length T: [T, d]; the rows of int [B, T]: [B, T, d]."""
        return rows(self.weight, positions)


class SinusoidalPositions(nn.Module):
    """Computed absolute positions, see `positions.sinusoids`; no parameter."""

    table: Tensor

    def __init__(self, rows: int, hidden_size: int):
        super().__init__()
        self.register_buffer("table", sinusoids(rows, hidden_size), persistent=False)

    def forward(self, positions: int | Tensor) -> Tensor:
        """As LearnedPositions."""
        return rows(self.table, positions)


def rows(table: Tensor, which: int | Tensor) -> Tensor:
    """The first `which` rows as a view, or those that an index tensor names."""
    return table[:which] if isinstance(which, int) else F.embedding(which, table)


def shrink_gradient(x: Tensor, factor: float) -> Tensor:
    """x, with its gradient times `factor` (GLM-130B, arXiv 2210.02414, section 3.3)."""
    return x * factor + x.detach() * (1.0 - factor)
