"""A rank's shards in the order of the rows they count in, copied together: one call then serves thousands of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.parallel.engine import Shard

AT_A_TIME = 2**24
"""Elements of a chunk, about: what is copied only to be reduced holds no more memory than this."""


@dataclass(frozen=True)
class Chunk:
    """Some rows of this rank. All tensors are flat, row after row."""

    shards: list[Shard]
    rows: list[int]
    sizes: list[int]
    """Elements of each of these rows."""

    @property
    def first(self) -> int:
        """Its first row, which no other chunk has."""
        return self.rows[0]

    def weights(self) -> Tensor:
        """A copy of the fp32 masters."""
        return torch.cat([shard.weight for shard in self.shards])

    def gradients(self) -> Tensor:
        """A copy of the reduced gradients; in a `before_update` listener."""
        return torch.cat([shard.gradient() for shard in self.shards])

    def second_moments(self) -> Tensor:
        """A copy of Adam's v."""
        return torch.cat([shard.exp_avg_sq for shard in self.shards])

    def squares(self, flat: Tensor) -> Tensor:
        """The sum of the squares in each row, in fp64 on the CPU: [rows]."""
        norms = torch._foreach_norm(list(flat.split(self.sizes)), dtype=torch.float64)
        return torch.stack(norms).cpu().square()


def chunks_of(shards: Sequence[Shard], row_of: Callable[[str], int]) -> list[Chunk]:
    """Every shard in one chunk, every row in one.

    Args:
        shards: of one rank.
        row_of: row of a parameter's name.
    """
    found: list[Chunk] = []
    current, elements = Chunk([], [], []), 0
    for row, own in _by_row(shards, row_of):
        size = sum(shard.stop - shard.start for shard in own)
        if not found or elements >= AT_A_TIME:
            current, elements = Chunk([], [], []), 0
            found.append(current)
        current.shards.extend(own)
        current.rows.append(row)
        current.sizes.append(size)
        elements += size
    return found


def _by_row(shards: Sequence[Shard], row_of: Callable[[str], int]) -> Iterator[tuple[int, list[Shard]]]:
    rows: dict[int, list[Shard]] = {}
    for shard in shards:
        rows.setdefault(row_of(shard.name), []).append(shard)
    yield from sorted(rows.items())
