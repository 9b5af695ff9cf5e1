"""Effective rank of what a layer gives (Roy & Vetterli 2007, "The effective rank: a measure of effective
dimensionality")."""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.monitors.layer_outputs import Content, LayerOutputs


class EffectiveRank(LayerOutputs):
    """exp(-sum_i p_i log p_i) with p the singular values of a sample's [tokens, d], divided by their sum.

    From 1 (all tokens along one direction) to min(tokens, d). A singular value decomposition a layer and sample.
    """

    figures = ("effective_rank",)

    def measure(self, x: Tensor, content: Content) -> tuple[Tensor, ...]:
        finite = x.isfinite().all(-1).all(-1)
        values = torch.linalg.svdvals(x.where(finite[..., None, None], 0.0))  # rows of zeros add none
        rank = torch.special.entr(values / values.sum(-1, keepdim=True)).sum(-1).exp()
        most = content.tokens.clamp(max=x.shape[-1])
        return (rank.clamp(torch.ones_like(most), most).where(finite, torch.nan),)  # rounding may pass the limits
