"""Tensors in the order in which they lie in memory, so that what is copied together is read in a row."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def memory_order(tensors: Sequence[Tensor]) -> list[int]:
    """Indices of the tensors: buffer by buffer, within each as they lie there.

    Buffers come in the order in which they are first met: where they lie is chance, and neither a sum nor a file may
    depend on it.
    """
    buffers: dict[int, int] = {}
    places = []
    for tensor in tensors:
        storage = tensor.untyped_storage().data_ptr()
        places.append((buffers.setdefault(storage, len(buffers)), tensor.storage_offset()))
    return sorted(range(len(tensors)), key=places.__getitem__)
