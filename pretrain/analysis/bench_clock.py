"""Timing over ranks: all at once, or rank 0 alone with everybody's threads while the others wait."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch

from pretrain.parallel import collectives

T = TypeVar("T")


class Spent(NamedTuple):
    """What an action took, equal on every rank."""

    seconds: float
    """Of the wall clock, on the slowest rank."""
    cpu_seconds: float
    """Of all ranks' threads: other programs lengthen it far less."""


class RankClock:
    """This rank's part in timing; every method is collective.

    Args:
        threads: torch's CPU threads of each rank.
        alone: of rank 0 when it runs alone; 0: those of all ranks.
    """

    def __init__(self, threads: int, alone: int = 0):
        self.threads = threads
        self.threads_alone = alone or threads * collectives.world_size()
        self.device = collectives.device()
        self._started = 0.0, 0.0
        self._waiting_cpu = self._waiting_wall = 0.0

    def together(self, action: Callable[[], T]) -> tuple[T, Spent]:
        """Run on all ranks at once; its result here."""
        self.start()
        result = action()
        return result, self.stop()

    def start(self) -> None:
        """Wait for all ranks, then start the clock."""
        gc.collect()  # or one side would now and then clean up after the other
        collectives.barrier()
        self._started = time.perf_counter(), time.process_time()

    def stop(self) -> Spent:
        """Stop the clock once this rank's GPU has done its work."""
        self._synchronise()
        wall, cpu = time.perf_counter() - self._started[0], time.process_time() - self._started[1]
        return self._share(wall, cpu)

    def alone(self, action: Callable[[], T]) -> tuple[T | None, Spent]:
        """Run on rank 0 with `threads_alone`; the others wait in a blocking receive, and get None."""
        self.start()
        result, wall, cpu = None, 0.0, 0.0
        start, cpu_start = time.perf_counter(), time.process_time()
        if collectives.is_first():
            torch.set_num_threads(self.threads_alone)
            self._started = time.perf_counter(), time.process_time()
            result = action()
            self._synchronise()
            wall, cpu = time.perf_counter() - self._started[0], time.process_time() - self._started[1]
            torch.set_num_threads(self.threads)
        spent = self._share(wall, cpu)
        self._waiting_cpu += time.process_time() - cpu_start
        self._waiting_wall += time.perf_counter() - start
        return result, spent

    def waiting_cpu_shares(self) -> list[float]:
        """Share of a core that each rank but rank 0 used while it waited: near 0, or the waiting disturbed."""
        shares = collectives.gather_rows(torch.tensor([self._waiting_cpu / max(self._waiting_wall, 1e-9)]))
        return shares[1:, 0].tolist()

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @staticmethod
    def _share(wall: float, cpu: float) -> Spent:
        wall = float(collectives.max_over(torch.tensor(wall, dtype=torch.float64)))
        return Spent(wall, float(collectives.sum_over(torch.tensor(cpu, dtype=torch.float64))))
