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
IN_PLACE = {"relu": partial(F.relu, inplace=True)}
"""On the output of a Linear, which its backward pass does not read: one tensor of ffn_size less is made."""
GATED = {"swiglu": "silu", "geglu": "gelu"}
"""Gated networks (Shazeer 2020, arXiv 2002.05202) by the activation of their gate."""


class FeedForward(nn.Module):
    """FFN(x) = fc2(activation(fc1(x))); x [..., d] -> [..., d], inner width ffn_size."""

    def __init__(self, hidden_size: int, ffn_size: int, activation: str, init: Initialiser, bias: bool = True):
        super().__init__()
        self.fc1 = Linear(hidden_size, ffn_size, init, bias)
        self.fc2 = Linear(ffn_size, hidden_size, init, bias)
        self.activation = IN_PLACE.get(activation, ACTIVATIONS[activation])
        self.inner_norm: nn.Module = nn.Identity()  # a norm over ffn_size where the design has one before fc2

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)  # of three dimensions fc1's output is a view, and in place on one copies its gradient
        return self.fc2(self.inner_norm(self.activation(self.fc1(rows)))).view_as(x)


class GatedFeedForward(nn.Module):
    """FFN(x) = fc2(activation(gate(x)) * fc1(x)); three matrices of inner width ffn_size (Shazeer 2020, eq. 6)."""

    def __init__(self, hidden_size: int, ffn_size: int, activation: str, init: Initialiser, bias: bool = True):
        super().__init__()
        self.gate = Linear(hidden_size, ffn_size, init, bias)
        self.fc1 = Linear(hidden_size, ffn_size, init, bias)
        self.fc2 = Linear(ffn_size, hidden_size, init, bias)
        self.activation = ACTIVATIONS[GATED[activation]]
        self.inner_norm: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.inner_norm(self.activation(self.gate(x)) * self.fc1(x)))


def feed_forward(
    hidden_size: int, ffn_size: int, activation: str, init: Initialiser, bias: bool = True
) -> FeedForward | GatedFeedForward:
    """The network of an activation's name: gated for swiglu and geglu."""
    network = GatedFeedForward if activation in GATED else FeedForward
    return network(hidden_size, ffn_size, activation, init, bias)
