"""Feed-forward networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.blocks.init import Initialiser
from pretrain.blocks.linear import Linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


class FeedForward(nn.Module):
    """FFN(x) = fc2(activation(fc1(x))); x [..., d] -> [..., d], inner width ffn_size."""

    def __init__(self, hidden_size: int, ffn_size: int, activation: str, init: Initialiser, bias: bool = True):
        super().__init__()
        self.fc1 = Linear(hidden_size, ffn_size, init, bias)
        self.fc2 = Linear(ffn_size, hidden_size, init, bias)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))
