"""A shuffle that needs no memory: a keyed bijection of 0 .. n-1.

A Feistel network permutes the numbers of an even count of bits; values that fall outside 0 .. n-1 are sent through
it again until they fall inside ("cycle walking", Black and Rogaway 2002), which keeps it a bijection.
"""

from __future__ import annotations

from pretrain.data.hashing import hash64

ROUNDS = 8
_MASK = 2**64 - 1


class Permutation:
    """A bijection of 0 .. size-1, chosen by a key.

    Args:
        size: n, at least 1.
        key: which of the bijections, e.g. ("order", seed, epoch).
    """

    def __init__(self, size: int, *key: str | int):
        if size < 1:
            raise ValueError("a permutation needs at least one item")
        self.size = size
        self._half = max((size - 1).bit_length() + 1, 2) // 2
        self._low = (1 << self._half) - 1
        self._keys = tuple(hash64("feistel", *key, round_) for round_ in range(ROUNDS))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        """Where `index` goes, 0 <= index < size."""
        if not 0 <= index < self.size:
            raise IndexError(f"{index} is outside 0 .. {self.size - 1}")
        index = self._network(index)
        while index >= self.size:
            index = self._network(index)
        return index

    def _network(self, value: int) -> int:
        left, right = value >> self._half, value & self._low
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & self._low)
        return left << self._half | right


def _mix(value: int) -> int:
    """SplitMix64's finaliser (Steele et al. 2014): every input bit changes every output bit."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
