"""The step's change against the size of what it changed: ||theta_t - theta_{t-1}|| / ||theta_{t-1}||."""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.monitors.parameters import Figure, Sums
from pretrain.monitors.update_norm import UpdateNorm
from pretrain.monitors.weight_norm import WeightNorm


class UpdateRatio(Figure):
    """update_norm / weight_norm, beside which it must stand; NaN where all weights were zero."""

    name = "update_ratio"

    def value(self, sums: Sums) -> Tensor:
        updates, weights = sums.rows[UpdateNorm.name].sqrt(), sums.rows[WeightNorm.name].sqrt()
        return torch.where(weights > 0, updates / weights, torch.nan)
