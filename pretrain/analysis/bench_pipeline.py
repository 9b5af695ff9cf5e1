"""Where a pipeline's step goes: seconds of each instruction on each stage, and its efficiency beside the ideal one.

With p stages of one thread each and m micro-batches, T_1 a step of one process of one thread and T_p one of the
pipeline, the efficiency is T_1 / (p T_p); 1F1B without any other cost reaches m / (m + p - 1) (Narayanan et al. 2021,
arXiv 2104.04473, section 2.2).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch

from pretrain.parallel import collectives
from pretrain.parallel.engine import Engine

TARGET = 0.9
"""Share of the ideal efficiency that is aimed at."""
FORWARD, BACKWARD = "ForwardPass", "BackwardPass"
WAITING = ("RecvActivation", "RecvGrad", "SendActivation", "SendGrad")
"""Transfers, and waiting for the neighbour in them."""
REST = ("LoadMicroBatch", "ReduceTiedGrads", "ReduceGrads", "OptimizerStep")
INSTRUCTIONS = (FORWARD, BACKWARD, *WAITING, *REST)


class InstructionTimes:
    """Seconds that each instruction of DeepSpeed's schedule took on this rank.

    Args:
        engine: of a pipeline; its instructions are timed from now on.
    """

    def __init__(self, engine: Engine):
        self.seconds = dict.fromkeys(INSTRUCTIONS, 0.0)
        deepspeed: Any = engine.deepspeed  # type: ignore[attr-defined]
        table = {kind: self._timed(kind.__name__, run) for kind, run in deepspeed._INSTRUCTION_MAP.items()}
        deepspeed._INSTRUCTION_MAP = table

    def _timed(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(run)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return run(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - start

        return timed

    def reset(self) -> None:
        """Forget what has been timed so far."""
        self.seconds = dict.fromkeys(INSTRUCTIONS, 0.0)

    def by_stage(self, steps: int) -> list[dict[str, float]]:
        """Seconds a step, one entry a rank, in the order of ranks. Collective."""
        mine = torch.tensor([self.seconds[name] / steps for name in INSTRUCTIONS], dtype=torch.float64)
        return [dict(zip(INSTRUCTIONS, row.tolist(), strict=True)) for row in collectives.gather_rows(mine)]


def efficiency(rival_seconds: float, pipeline_seconds: float, stages: int) -> float:
    """T_1 / (p T_p)."""
    return rival_seconds / (stages * pipeline_seconds)


def ideal_efficiency(micro_batches: int, stages: int) -> float:
    """m / (m + p - 1)."""
    return micro_batches / (micro_batches + stages - 1)


def pipeline_text(figures: dict[str, Any]) -> list[str]:
    """Lines of the report: efficiency where the rival had one thread a stage, and each stage's seconds."""
    stages, step = figures["pipeline_stages"], figures["engine"]["median_step_seconds"]
    ideal = ideal_efficiency(figures["micro_batches"], stages)
    lines = []
    if figures["threads"]["rival"] == figures["threads"]["each_process"]:
        # The pairs' ratio, as for the table: what slows both down cancels.
        reached = 1 / (stages * figures["ratio"]["median"])
        lines.append(
            f"efficiency {reached:.3f} = one process / ({stages} x the pipeline); ideal {ideal:.3f} = "
            f"{figures['micro_batches']} / ({figures['micro_batches']} + {stages - 1}); {reached / ideal:.0%} of it, "
            f"target {TARGET:.0%}"
        )
    lines.append(f"{'stage':<7}{'forward':>9}{'backward':>10}{'transfers':>11}{'rest':>8}{'between':>9}  s a step")
    for stage, seconds in enumerate(figures["pipeline_seconds"]):
        waiting, rest = (sum(seconds[name] for name in names) for names in (WAITING, REST))
        between = step - sum(seconds.values())
        lines.append(
            f"{stage:<7}{seconds[FORWARD]:>9.3f}{seconds[BACKWARD]:>10.3f}{waiting:>11.3f}{rest:>8.3f}{between:>9.3f}"
        )
    lines.append("transfers: sending and receiving, waiting for the neighbour included")
    return lines
