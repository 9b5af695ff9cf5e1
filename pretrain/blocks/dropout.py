"""Dropout whose mask is a function of (seed, step, sample, layer): the same in every layout and when recomputed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Odd multipliers of MurmurHash3's 64-bit finaliser, as signed integers; torch's shift keeps the sign, the original's
# does not, which makes no difference to the non-negative keys.
_MULTIPLY_1 = 0xFF51AFD7ED558CCD - (1 << 64)
_MULTIPLY_2 = 0xC4CEB9FE1A85EC53 - (1 << 64)
_RESOLUTION = 1 << 24


def mix(z: Tensor) -> Tensor:
    """Scramble int64 values, element by element (wrapping arithmetic)."""
    z = (z ^ (z >> 33)) * _MULTIPLY_1
    z = (z ^ (z >> 33)) * _MULTIPLY_2
    return z ^ (z >> 33)


def keep_mask(sample_key: Tensor, layer_key: Tensor, shape: torch.Size, probability: float) -> Tensor:
    """Which elements are kept.

    Args:
        sample_key: int64 [B], one key a sample (it identifies seed, epoch and sample, hence the step).
        layer_key: int64 scalar, differs from layer to layer.
        shape: [B, ...], the shape of what is dropped from.
        probability: share of elements that are dropped, resolved to 2^-24.

    Returns:
        bool tensor of `shape`.
    """
    per_sample = shape[1:].numel()
    index = torch.arange(per_sample, device=sample_key.device)
    key = mix(sample_key ^ layer_key)
    bits = mix(key[:, None] + index[None, :] * _MULTIPLY_2) & (_RESOLUTION - 1)
    return (bits >= round(probability * _RESOLUTION)).view(shape)


class KeyedDropout(nn.Module):
    """Inverted dropout; the identity in evaluation and at probability 0."""

    layer_key: Tensor

    def __init__(self, probability: float, layer_key: int):
        super().__init__()
        self.probability = probability
        # A buffer, not an attribute: a differing int per layer would recompile under torch.compile.
        self.register_buffer("layer_key", torch.tensor(layer_key, dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor, sample_key: Tensor) -> Tensor:
        if self.probability == 0.0 or not self.training:
            return x
        mask = keep_mask(sample_key, self.layer_key, x.shape, self.probability)
        return x * mask.to(x.dtype) / (1.0 - self.probability)
