"""The probe: a few fixed samples of the validation split, which every sampled step runs through the model, without
dropout, in whatever layout. What is measured on it changes with the weights alone, and not with the batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pretrain.data.loader import validation_batches
from pretrain.data.samples import Samples
from pretrain.parallel.engine import Engine


class Probe:
    """The first `count` validation samples, spread over the data-parallel ranks in whole micro-batches.

    Every stage of a pipeline sees this rank's micro-batches in order, each once: a listener that counts its own calls
    knows by `rows` which rows of a micro-batch are samples; the other rows only fill it up.

    Args:
        samples: unshuffled samples of the validation split.
        count: P, samples of the probe; fewer if the split has fewer.
        micro_batch_size: B.
    """

    def __init__(self, samples: Samples, count: int, micro_batch_size: int):
        self.samples = samples
        self.count = min(count, len(samples))
        self.micro_batch_size = micro_batch_size

    def place(self, engine: Engine) -> None:
        """Find this rank's share; once, before the first `run`."""
        rank, size = engine.data_parallel_rank, engine.data_parallel_size
        if engine.num_stages == 1:  # a pipeline's buffers have the shape of training's micro-batches
            self.micro_batch_size = min(self.micro_batch_size, -(-self.count // size))
        self.batches = validation_batches(self.samples, self.count, self.micro_batch_size, rank, size)
        per_rank = len(self.batches) * self.micro_batch_size
        firsts = range(rank * per_rank, (rank + 1) * per_rank, self.micro_batch_size)
        self.rows: Sequence[range] = [
            range(min(first, self.count), min(first + self.micro_batch_size, self.count)) for first in firsts
        ]
        """For each of this rank's micro-batches the samples (0..P-1) that its first rows hold; none in filler."""

    def run(self, engine: Engine) -> None:
        """One forward pass, on every rank."""
        engine.evaluate(self.batches)

    def fingerprint(self) -> str:
        """SHA-256 of what the model reads of the P samples, the same in every layout."""
        digest = hashlib.sha256()
        for index in range(self.count):
            for name, values in sorted(self.samples[index].items()):
                digest.update(name.encode() + values.tobytes())
        return digest.hexdigest()
