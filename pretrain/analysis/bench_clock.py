"""Timing over ranks: all at once, or rank 0 alone with everybody's threads while the others wait."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from pretrain.parallel import collectives

T = TypeVar("T")


class RankClock:
    """This rank's part in timing; every method is collective.

    Args:
        threads: torch's CPU threads of each rank.
    """

    def __init__(self, threads: int):
        self.threads = threads
        self.device = collectives.device()
        self._waiting_cpu = self._waiting_wall = 0.0

    def together(self, action: Callable[[], T]) -> tuple[T, float]:
        """Run on all ranks at once; its result here, and the seconds of the slowest."""
        self.line_up()
        start = time.perf_counter()
        result = action()
        self.synchronise()
        return result, self._longest(time.perf_counter() - start)

    def alone(self, action: Callable[[], T]) -> tuple[T | None, float]:
        """Run on rank 0 with the threads of all ranks; the others wait in a blocking receive, and get None."""
        self.line_up()
        result, seconds = None, 0.0
        cpu, start = time.process_time(), time.perf_counter()
        if collectives.is_first():
            torch.set_num_threads(self.threads * collectives.world_size())
            start = time.perf_counter()
            result = action()
            self.synchronise()
            seconds = time.perf_counter() - start
            torch.set_num_threads(self.threads)
        seconds = self._longest(seconds)
        self._waiting_cpu += time.process_time() - cpu
        self._waiting_wall += time.perf_counter() - start
        return result, seconds

    def waiting_cpu_shares(self) -> list[float]:
        """Share of a core that each rank but rank 0 used while it waited: near 0, or the waiting disturbed."""
        shares = collectives.gather_rows(torch.tensor([self._waiting_cpu / max(self._waiting_wall, 1e-9)]))
        return shares[1:, 0].tolist()

    def line_up(self) -> None:
        """Wait for all ranks; do it before a clock starts."""
        gc.collect()  # or one side would now and then clean up after the other
        collectives.barrier()

    def synchronise(self) -> None:
        """Wait for this rank's GPU; do it before a clock stops."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _longest(self, seconds: float) -> float:
        return float(collectives.max_over(torch.tensor(seconds, dtype=torch.float64)))
