"""Batches: the same global batches in the same order for every number of processes and every micro-batch size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from pretrain.data.fingerprint import differences
from pretrain.data.samples import Samples
from pretrain.errors import DataError
from pretrain.objectives.cross_entropy import IGNORE_INDEX
from pretrain.objectives.exchange import with_source_of

Batch = dict[str, torch.Tensor]
Range = tuple[int, int]


class BatchLoader:
    """Gives a data-parallel rank its micro-batches, step after step; one thread prepares the next step meanwhile.

    A global batch is the next `global_batch_size` global sample indices that are not skipped. Rank r takes the r-th
    contiguous slice of it, cut into micro-batches. Nothing depends on the layout but which slice a rank sees.

    Args:
        samples: shuffled samples of the training split.
        seed: must be the samples' own; stated so that a mix-up is refused.
        global_batch_size: G, samples a step over all ranks.
        micro_batch_size: B, samples in one forward pass of a rank.
        data_parallel_rank: r.
        data_parallel_size: number of ranks; G must be a multiple of it times B.
        skip_ranges: half-open ranges [a, b) of global indices that are never used.
    """

    def __init__(
        self,
        samples: Samples,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        data_parallel_rank: int = 0,
        data_parallel_size: int = 1,
        skip_ranges: Iterable[Sequence[int]] = (),
    ):
        if seed != samples.seed:
            raise ValueError(f"the loader's seed {seed} is not the samples' {samples.seed}")
        if global_batch_size % (micro_batch_size * data_parallel_size):
            raise ValueError(
                f"global batch {global_batch_size} is no multiple of {micro_batch_size} x {data_parallel_size} ranks"
            )
        self.samples = samples
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        per_rank = global_batch_size // data_parallel_size
        self._slice = slice(data_parallel_rank * per_rank, (data_parallel_rank + 1) * per_rank)
        self._position = 0
        self._skipped = merge_ranges(skip_ranges)
        self._last: list[int] = []
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._next: Future[list[Batch]] | None = None
        self._next_indices: list[int] = []

    def next(self) -> list[Batch]:
        """The micro-batches of this rank for the next step.

        Each has `input_ids` [B, S], `attention_mask` [B, S], `decoder_input_ids` [B, T], `labels` [B, T] and
        `sample_key` [B], all int64.
        """
        if self._next is None:
            self._prefetch()
        assert self._next is not None
        batches = self._next.result()
        self._last = self._next_indices
        self._position = self._last[-1] + 1
        self._prefetch()
        return batches

    def pass_by(self) -> list[Batch]:
        """Advance one step without reading anything, on a rank that needs no data; returns no micro-batches."""
        self._last = next_indices(self._position, self.global_batch_size, self._skipped)
        self._position = self._last[-1] + 1
        return []

    @property
    def samples_consumed(self) -> int:
        """Global index after the last one used; skipped indices before it count as passed."""
        return self._position

    @property
    def last_ranges(self) -> list[Range]:
        """The global indices of the last step as half-open ranges, over all ranks; [] before the first step."""
        return _as_ranges(self._last)

    def ranges_after(self, state: dict[str, Any]) -> list[Range]:
        """The same of the step that follows on a state of a run with this global batch."""
        skipped = merge_ranges(state["skip_ranges"])
        return _as_ranges(next_indices(int(state["samples_consumed"]), self.global_batch_size, skipped))

    def skip(self, ranges: Iterable[Sequence[int]]) -> None:
        """Never use these global indices [a, b) from now on; they are kept in the state."""
        self._skipped = merge_ranges([*self._skipped, *ranges])
        self._forget()

    def state_dict(self) -> dict[str, Any]:
        """Position after the last step taken, whatever has been prepared beyond it."""
        return {
            "samples_consumed": self._position,
            "skip_ranges": [list(pair) for pair in self._skipped],
            "fingerprint": self.samples.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the step the state was taken at. Ranges skipped by hand are added to the saved ones.

        Raises:
            DataError: the state belongs to other data.
        """
        changed = differences(state["fingerprint"], self.samples.fingerprint)
        if changed:
            raise DataError(
                f"data: not the data this run was trained on ({', '.join(changed)}); "
                "restore it, or start a new run with another run.dir"
            )
        self._position = int(state["samples_consumed"])
        self._skipped = merge_ranges([*self._skipped, *state["skip_ranges"]])
        self._last = []
        self._forget()

    def close(self) -> None:
        """End the thread, which else keeps the process alive. The loader can be used no more."""
        self._forget()
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _forget(self) -> None:
        if self._next is not None:
            self._next.cancel()
        self._next = None

    def _prefetch(self) -> None:
        self._next_indices = next_indices(self._position, self.global_batch_size, self._skipped)
        self._next = self._worker.submit(self._load, self._next_indices[self._slice])

    def _load(self, indices: list[int]) -> list[Batch]:
        size = self.micro_batch_size
        return [collate(self.samples, indices[i : i + size]) for i in range(0, len(indices), size)]


def validation_batches(
    samples: Samples, count: int, micro_batch_size: int, rank: int, size: int, exchange_sources: bool = False
) -> list[Batch]:
    """The fixed validation batches of one data-parallel rank: equally many on every rank.

    Rows beyond the last sample repeat sample 0 with all labels -100, so they weigh nothing.

    Args:
        samples: unshuffled samples of the validation split.
        count: samples to use over all ranks; fewer if the split has fewer.
        micro_batch_size: B, rows of every batch.
        rank: data-parallel rank.
        size: data-parallel ranks.
        exchange_sources: each sample reads the source of the one that lies half of all samples further on: neighbours
            may be of one document. See `objectives.exchange`.
    """
    count = min(count, len(samples))
    batches = -(-count // (micro_batch_size * size))
    first = rank * batches * micro_batch_size
    result = []
    for start in range(first, first + batches * micro_batch_size, micro_batch_size):
        rows = range(start, start + micro_batch_size)
        used = [row if row < count else 0 for row in rows]
        batch = collate(samples, used, [(row + count // 2) % count for row in used] if exchange_sources else None)
        batch["labels"][[row >= count for row in rows]] = IGNORE_INDEX
        result.append(batch)
    return result


def collate(samples: Samples, indices: Sequence[int], sources: Sequence[int] | None = None) -> Batch:
    """The samples of these global indices as int64 tensors [B, ...], with `sample_key` [B].

    Args:
        sources: the samples whose sources they read; default: their own.
    """
    rows = [samples[index] for index in indices]
    if sources is not None:
        rows = [with_source_of(row, samples[source]) for row, source in zip(rows, sources, strict=True)]
    batch = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
    batch["sample_key"] = torch.tensor([samples.key(index) for index in indices], dtype=torch.int64)
    return batch


def next_indices(position: int, count: int, skipped: Sequence[Range]) -> list[int]:
    """The first `count` indices from `position` on that lie in no skipped range (sorted, merged)."""
    indices: list[int] = []
    for start, stop in skipped:
        if position < start:
            indices += range(position, min(start, position + count - len(indices)))
        if len(indices) == count:
            return indices
        position = max(position, stop)
    return indices + list(range(position, position + count - len(indices)))


def merge_ranges(ranges: Iterable[Sequence[int]]) -> list[Range]:
    """Sorted, disjoint, non-adjacent half-open ranges with the same members.

    Raises:
        DataError: a range that is not [a, b) with 0 <= a < b.
    """
    merged: list[Range] = []
    for pair in sorted(list(pair) for pair in ranges):
        if len(pair) != 2 or not 0 <= pair[0] < pair[1]:
            raise DataError(f"data.skip_ranges: {pair} is no range [first, end] with 0 <= first < end")
        start, stop = pair
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return merged


def _as_ranges(indices: Sequence[int]) -> list[Range]:
    return merge_ranges([(index, index + 1) for index in indices])
