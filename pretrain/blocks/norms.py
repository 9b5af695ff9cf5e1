"""Normalisation layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from pretrain.blocks.init import GeneratorFor

BASE_EPS = 1e-5  # fixed in the Hugging Face classes that exports go to (Bart, OPT)


class LayerNorm(nn.LayerNorm):
    """LayerNorm with gain and bias over the last dimension (Ba et al. 2016); gain one, bias zero at the start."""

    def __init__(self, hidden_size: int, eps: float = BASE_EPS, bias: bool = True):
        super().__init__(hidden_size, eps=eps, bias=bias)

    def reset_parameters(self) -> None:
        """Nothing: `initialise` sets the parameters."""

    @torch.no_grad()
    def initialise(self, generator: GeneratorFor) -> None:
        self.weight.fill_(1.0)
        if self.bias is not None:
            self.bias.zero_()


class RMSNorm(nn.RMSNorm):
    """g * x / sqrt(mean(x^2) + eps) over the last dimension (Zhang & Sennrich 2019); gain one at the start."""

    def __init__(self, hidden_size: int, eps: float = BASE_EPS):
        super().__init__(hidden_size, eps=eps)

    def reset_parameters(self) -> None:
        """Nothing: `initialise` sets the parameters."""

    @torch.no_grad()
    def initialise(self, generator: GeneratorFor) -> None:
        self.weight.fill_(1.0)


NORMS: dict[str, type[LayerNorm] | type[RMSNorm]] = {"layer_norm": LayerNorm, "rms_norm": RMSNorm}
GAIN_NORMS: dict[str, Callable[[int, float], nn.Module]] = {
    "layer_norm": partial(LayerNorm, bias=False),
    "rms_norm": RMSNorm,
}
"""The same without a bias."""
