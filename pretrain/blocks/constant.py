"""Numbers that a design gives each layer."""

from __future__ import annotations

import torch
from torch import Tensor


def constant(value: float) -> Tensor:
    """`value` as a factor that differs from layer to layer: fp64 [], held as a plain attribute, second in its product.

    Compiled code takes a tensor as an input. Of a float it would keep the first layer's value, and be compiled anew at
    the second: a layer that is recomputed would then run other code than its forward pass did. It is no buffer: a cast
    of the model would round it, and a GPU would before a product with bf16. A scalar on the CPU enters the kernels of
    every device as a number, exactly as a float does; as the first factor the CPU's would round it to bf16.
    """
    return torch.tensor(value, dtype=torch.float64, device="cpu")
