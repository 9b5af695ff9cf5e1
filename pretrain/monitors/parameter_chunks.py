"""A rank's shards in the order of the rows they count in, copied together: one call then serves thousands of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from pretrain.parallel.engine import Shard
from pretrain.parallel.memory_order import memory_order
from pretrain.parallel.norms import lengths

AT_A_TIME = {"cpu": 2**18}
"""Elements of a chunk, about, by device: 1 MiB, which stays in a core's cache from one pass to the next."""
OTHERWISE = 2**24
"""On other devices: many enough to be worth a kernel, and few enough for what is copied only to be reduced."""


BLOCK = 256
"""Elements whose squares are added up at once."""


class Chunk:
    """Some rows of this rank. All tensors are flat, row after row, each filled up with zeros to whole blocks.

    Args:
        rows: each with its shards.
    """

    def __init__(self, rows: Sequence[tuple[int, list[Shard]]]):
        self.rows = [row for row, _ in rows]
        self.sizes = [sum(shard.stop - shard.start for shard in own) for _, own in rows]
        """Elements of each of these rows."""
        self.shards = [shard for _, own in rows for shard in own]
        self._by_row = [own for _, own in rows]
        device = self.shards[0].weight.device
        self._fill = [torch.zeros(-size % BLOCK, device=device) for size in self.sizes]
        blocks = torch.tensor([-(-size // BLOCK) for size in self.sizes], device=device)
        self._row_of_block = torch.arange(len(rows), device=device).repeat_interleave(blocks)
        self._weights = self._filled([joined([shard.weight for shard in own]) for own in self._by_row])

    @cached_property
    def _second_moments(self) -> list[Tensor]:
        return self._filled([joined([shard.exp_avg_sq for shard in own]) for own in self._by_row])

    def _filled(self, rows: Iterable[Sequence[Tensor]]) -> list[Tensor]:
        return [tensor for row, fill in zip(rows, self._fill, strict=True) for tensor in (*row, fill)]

    @property
    def first(self) -> int:
        """Its first row, which no other chunk has."""
        return self.rows[0]

    def laid_out(self, tensors: Iterable[Tensor]) -> Tensor:
        """One flat tensor a shard, in the order of `shards`, as one copy with all that this class adds to it."""
        given = iter(tensors)
        return torch.cat(self._filled([next(given) for _ in own] for own in self._by_row))

    def weights(self) -> Tensor:
        """A copy of the fp32 masters."""
        return torch.cat(self._weights)

    def less_weights_(self, flat: Tensor) -> Tensor:
        """`flat` less the fp32 masters, in place: without a copy of them."""
        torch._foreach_sub_(list(flat.split([run.numel() for run in self._weights])), self._weights)
        return flat

    def gradients(self) -> Tensor:
        """A copy of the reduced gradients; in a `before_update` listener."""
        return self.laid_out(shard.gradient() for shard in self.shards)

    def second_moments(self) -> Tensor:
        """A copy of Adam's v."""
        return torch.cat(self._second_moments)

    def squares(self, flat: Tensor) -> Tensor:
        """The sum of the squares in each row, in fp64: [rows]."""
        squares = lengths(flat.view(-1, BLOCK)).square_()
        return squares.new_zeros(len(self.rows)).index_add_(0, self._row_of_block, squares)


def chunks_of(shards: Sequence[Shard], row_of: Callable[[str], int]) -> list[Chunk]:
    """Every shard in one chunk, every row in one.

    Args:
        shards: of one rank.
        row_of: row of a parameter's name.
    """
    found: list[list[tuple[int, list[Shard]]]] = []
    elements = 0
    for row, own in _by_row(shards, row_of):
        if not found or elements >= AT_A_TIME.get(own[0].weight.device.type, OTHERWISE):
            found.append([])
            elements = 0
        found[-1].append((row, own))
        elements += sum(shard.stop - shard.start for shard in own)
    return [Chunk(rows) for rows in found]


def _by_row(shards: Sequence[Shard], row_of: Callable[[str], int]) -> Iterator[tuple[int, list[Shard]]]:
    """The rows in order, the shards of each as they lie in memory."""
    rows: dict[int, list[Shard]] = {}
    for number in memory_order([shard.weight for shard in shards]):
        rows.setdefault(row_of(shards[number].name), []).append(shards[number])
    yield from sorted(rows.items())


def joined(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same elements in the same order, in as few views as can be: neighbours in memory become one.

    Args:
        tensors: flat and contiguous.
    """
    found: list[Tensor] = []
    for tensor in tensors:
        if found and _follows(found[-1], tensor):
            start, size = found[-1].storage_offset(), found[-1].numel() + tensor.numel()
            found[-1] = tensor.as_strided((size,), (1,), start)
        else:
            found.append(tensor)
    return found


def _follows(one: Tensor, other: Tensor) -> bool:
    same = _buffer(one) == _buffer(other) and one.dtype == other.dtype
    return same and one.storage_offset() + one.numel() == other.storage_offset()


def _buffer(tensor: Tensor) -> int:
    """Of what it is a view."""
    return tensor.untyped_storage().data_ptr()
