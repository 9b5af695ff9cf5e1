"""Samples: pieces of a token stream, shuffled and noised as a pure function of (seed, epoch, index)."""

from __future__ import annotations

import functools

import numpy as np

from pretrain.data.hashing import hash64, hash128
from pretrain.data.permutation import Permutation
from pretrain.objectives.registry import Objective


class Samples:
    """The samples of one split, addressed by a global index that counts on over the epochs.

    The stream is cut into consecutive pieces of `objective.raw_length` tokens; what is left over at the end is not
    used, unless it is all there is. The same index gives the same sample in every process and every session.

    Args:
        tokens: [n] ids, n >= 1; may be a memory map.
        objective: turns a piece into arrays.
        seed: of order and noise.
        split: name of the split; two splits draw different noise.
        shuffle: a new order each epoch (training). Without: index order, and index g is sample g % len always.
        fingerprint: of everything that decides the samples; `BatchLoader` compares it on resume.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        objective: Objective,
        seed: int,
        split: str,
        shuffle: bool,
        fingerprint: str = "",
    ):
        if len(tokens) == 0:
            raise ValueError(f"the {split} split has no tokens")
        self.tokens = tokens
        self.objective = objective
        self.seed = seed
        self.split = split
        self.shuffle = shuffle
        self.fingerprint = fingerprint
        self._count = self._pieces()

    def __len__(self) -> int:
        """Samples in one epoch."""
        return self._count

    @property
    def contents(self) -> str:
        """What one sample takes, in words."""
        return f"{self.objective.raw_length} tokens"

    @property
    def left_out(self) -> str | None:
        """What is in no sample though a user may expect it, in words."""
        return None

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Sample `index` >= 0, as `objective.sample` returns it."""
        index = self._canonical(index)
        rng = np.random.Generator(np.random.Philox(key=hash128("noise", self.seed, self.split, index)))
        return self.objective.sample(self.text(index), rng)

    def text(self, index: int) -> np.ndarray:
        """The piece of the stream behind sample `index`, [n <= raw_length] int64."""
        return self._cut(self._piece(self._canonical(index)))

    def key(self, index: int) -> int:
        """A number of 63 bits that belongs to this sample alone; keyed dropout is drawn from it."""
        return hash64("sample", self.seed, self.split, self._canonical(index)) >> 1

    def _pieces(self) -> int:
        """How many pieces there are."""
        return max(len(self.tokens) // self.objective.raw_length, 1)

    def _cut(self, piece: int) -> np.ndarray:
        """The text of piece 0.._pieces()-1, int64."""
        length = self.objective.raw_length
        return np.asarray(self.tokens[piece * length : (piece + 1) * length], dtype=np.int64)

    def _canonical(self, index: int) -> int:
        if index < 0:
            raise IndexError(f"sample index {index} is negative")
        return index if self.shuffle else index % self._count

    def _piece(self, index: int) -> int:
        if not self.shuffle:
            return index
        epoch, position = divmod(index, self._count)
        return _epoch_order(self._count, self.seed, self.split, epoch)[position]


@functools.lru_cache(maxsize=16)
def _epoch_order(count: int, seed: int, split: str, epoch: int) -> Permutation:
    return Permutation(count, "order", seed, split, epoch)
