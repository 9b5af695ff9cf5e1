"""A linear map whose initialisation is stated where it is built."""

from __future__ import annotations

from torch import nn

from pretrain.blocks.init import GeneratorFor, Initialiser


class Linear(nn.Linear):
    """y = x W^T + b, W of (out_features, in_features); W by `init`, b zero."""

    def __init__(self, in_features: int, out_features: int, init: Initialiser, bias: bool = True):
        self.init = init
        super().__init__(in_features, out_features, bias=bias)

    def reset_parameters(self) -> None:
        """Nothing: `initialise` sets the parameters, once, from the seeded source."""

    def initialise(self, generator: GeneratorFor) -> None:
        self.init(self.weight, generator("weight"))
        if self.bias is not None:
            self.bias.zero_()
