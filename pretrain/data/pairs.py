"""Samples of pairs: which pairs go into which sample, decided from their lengths when a token file is opened.

The token file alternates source and target, each ended by eos. A pair that is too long for a sample is left out and
counted. Where pairs are packed, they are put into one fixed order that mixes the corpus, and each sample takes the next
ones as long as both sides have room.
"""

from __future__ import annotations

import numpy as np

from pretrain.data.samples import Samples
from pretrain.data.tokens import TokenFile
from pretrain.errors import DataError
from pretrain.objectives.registry import Objective


class PairSamples(Samples):
    """Samples of one pair each or, where the objective is segmented, of as many as fit; every pair once an epoch.

    Args:
        file: sequences source, target, source, target, ...
        others: as of `Samples`.

    Raises:
        DataError: no pair fits.
    """

    def __init__(
        self, file: TokenFile, objective: Objective, seed: int, split: str, shuffle: bool, fingerprint: str = ""
    ):
        lengths = file.lengths.astype(np.int64).reshape(-1, 2)
        room = np.array([objective.source_length, objective.target_length])
        if len(lengths) == 0:
            raise DataError(
                f"data.{split}: no pair is left for this split; give more pairs (a source that data.validation has is "
                "not trained on)"
            )
        fitting = np.flatnonzero((lengths <= room).all(axis=1))
        if len(fitting) == 0:
            raise DataError(
                f"data.{split}: none of the {len(lengths):,} pairs fits data.sequence_length = {room[0]} and "
                f"objective.target_length = {room[1]}; set longer ones, or give more pairs"
            )
        # One entry a pair in the order of the samples, and for each sample where its pairs begin.
        self._order = fitting[mixed(len(fitting))] if objective.segmented else fitting
        ordered = lengths[self._order]
        self._first = pack(ordered, room) if objective.segmented else np.arange(len(fitting) + 1)
        self._ends = np.cumsum(lengths.sum(axis=1))
        self._all = len(lengths)
        self._filled = ordered.sum(axis=0) / (room * (len(self._first) - 1))
        super().__init__(file.tokens, objective, seed, split, shuffle, fingerprint)

    @property
    def contents(self) -> str:
        source, target = self._filled
        pairs = len(self._order) / len(self)
        return f"{pairs:.2f} pairs (mean), {source:.1%} of the source and {target:.1%} of the target filled"

    @property
    def left_out(self) -> str | None:
        count = self._all - len(self._order)
        if count == 0:
            return None
        return (
            f"{count:,} of {self._all:,} pairs, which are longer than data.sequence_length = "
            f"{self.objective.source_length} or objective.target_length = {self.objective.target_length} tokens"
        )

    def _pieces(self) -> int:
        return len(self._first) - 1

    def _cut(self, piece: int) -> np.ndarray:
        """`source eos target eos` of each pair."""
        pairs = self._order[self._first[piece] : self._first[piece + 1]]
        starts = [self._ends[pair - 1] if pair else 0 for pair in pairs]
        texts = [self.tokens[start : self._ends[pair]] for start, pair in zip(starts, pairs, strict=True)]
        return np.concatenate(texts).astype(np.int64)


def pack(lengths: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Put consecutive items together as long as every dimension has room.

    Args:
        lengths: [n, k], each row at most `room`.
        room: [k].

    Returns:
        [packs + 1] int64: pack p holds the items first[p] .. first[p + 1] - 1.
    """
    ends = np.cumsum(lengths, axis=0)
    first = [0]
    while first[-1] < len(lengths):
        used = ends[first[-1] - 1] if first[-1] else np.zeros_like(room)
        first.append(min(int(np.searchsorted(ends[:, k], used[k] + room[k], "right")) for k in range(len(room))))
    return np.array(first, dtype=np.int64)


def mixed(count: int) -> np.ndarray:
    """One fixed permutation of 0 .. count-1: by SplitMix64 of the number, the same in every version of numpy."""
    value = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(value ^ (value >> np.uint64(31)), kind="stable")
