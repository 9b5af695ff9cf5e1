"""A copy of what this rank owns, made while training stands still, in flat buffers that every save uses again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from pretrain.parallel.engine import Engine, Shard
from pretrain.parallel.memory_order import memory_order
from pretrain.state.index import MOMENTS, WEIGHT, Box, Piece

RNG = "rng_torch"
QUANTITIES = (WEIGHT, *MOMENTS)


@dataclass(frozen=True)
class _Run:
    """Shards that lie one after the other both in the engine's memory and in a buffer: one copy.

    The reference is weak: memory that the engine has given up is noticed, and not kept alive.
    """

    storage: StorageWeakRef
    dtype: torch.dtype
    device: torch.device
    offset: int
    """First element in the storage."""
    numel: int
    quantity: str
    at: int
    """First element in the buffer."""

    def source(self) -> Tensor | None:
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        if storage is None:
            return None
        return torch.empty(0, dtype=self.dtype, device=self.device).set_(storage, self.offset, (self.numel,), (1,))  # type: ignore[call-overload]


class Snapshot:
    """Flat fp32 buffers on the host. 1000 layers have 63,000 shards in a handful of storages: a copy each would take
    longer than the bytes do."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        """What the buffers hold, in the order of the model's layers."""
        self.buffers: dict[str, Tensor] = {}
        self._runs: list[_Run] = []

    def take(self, engine: Engine, fresh: bool = False, tensors: Mapping[str, Tensor] = MappingProxyType({})) -> None:
        """Copy the engine's state as it is now.

        Args:
            engine: gives the shards.
            fresh: ask it anew where they lie; else only if one of its buffers is gone.
            tensors: small ones to keep beside them, CPU; not copied.
        """
        sources = [run.source() for run in self._runs]
        if fresh or not sources or any(source is None for source in sources):
            shards = list(engine.owned_shards())  # alive until they are copied, should they be no views
            self._plan(shards)
            sources = [run.source() for run in self._runs]
        for run, source in zip(self._runs, sources, strict=True):
            assert source is not None
            self.buffers[run.quantity][run.at : run.at + run.numel].copy_(source, non_blocking=True)
        if any(run.device.type == "cuda" for run in self._runs):
            torch.cuda.synchronize()
        self.buffers = {quantity: self.buffers[quantity] for quantity in QUANTITIES}
        self.buffers |= {RNG: torch.get_rng_state(), **tensors}

    def _plan(self, shards: Sequence[Shard]) -> None:
        """Where each shard comes from and goes to: in the order of memory, so that neighbours stay neighbours."""
        places = {}
        at = 0
        for number in memory_order([shard.weight for shard in shards]):
            places[number] = at
            at += shards[number].weight.numel()
        self.pieces = [
            Piece(shard.name, shard.shape, Box.whole(shard.shape), shard.start, shard.stop, places[number])
            for number, shard in enumerate(shards)
        ]
        ordered = [(shards[number], place) for number, place in places.items()]
        self._runs = [run for quantity in QUANTITIES for run in _runs(quantity, ordered)]
        if not self.buffers or self.buffers[WEIGHT].numel() != at:
            pinned = any(run.device.type == "cuda" for run in self._runs)
            self.buffers = {quantity: torch.empty(at, pin_memory=pinned) for quantity in QUANTITIES}


def _runs(quantity: str, shards: Sequence[tuple[Shard, int]]) -> list[_Run]:
    """As few copies as make up a quantity; `shards` with their places, in the order of the buffer, without gaps."""
    runs: list[_Run] = []
    refs: dict[int, StorageWeakRef] = {}
    for shard, at in shards:
        part: Tensor = getattr(shard, quantity)
        if not part.numel():
            continue
        storage, offset = part.untyped_storage(), int(part.storage_offset())
        last = runs[-1] if runs else None
        ref = refs.setdefault(storage._cdata, StorageWeakRef(storage))
        if last is not None and last.storage is ref and last.dtype == part.dtype and last.offset + last.numel == offset:
            runs[-1] = _Run(ref, part.dtype, part.device, last.offset, last.numel + part.numel(), quantity, last.at)
        else:
            runs.append(_Run(ref, part.dtype, part.device, offset, part.numel(), quantity, at))
    return runs
