"""How long a rank may go without a mark of progress, or without a sign of life."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

START, FIRST_STEP, CHECKPOINT = "start", "first step", "checkpoint"
IMPORTS, DATA, MEETING, BUILD, END = "imports", "preparing data", "process group", "building the engine", "end"
STARTING = (START, IMPORTS, DATA, MEETING, BUILD, END)
"""What a session does before its steps, and after them."""
GROWTH = 3.0
"""How many times the longest gap seen so far may pass before a rank counts as stuck."""


@dataclass
class Limits:
    """Seconds by phase. Each grows with the longest gap between two marks that this rank has seen there.

    The start and the first step (compilation, first allocations, cold files) and saves have a long allowance. Gaps
    of the first step count for later steps too: whatever is slow by nature shows itself there. Gaps of a save or of
    the start do not. The preparation of data may take as long as it likes: a large corpus takes hours, and whoever
    waits for it beats.

    Args:
        timeout: least limit of all other phases.
        first_step: of the time before the end of the first step.
        save: of checkpoints.
        start: without any sign of life, while a session starts.
    """

    timeout: float
    first_step: float
    save: float
    start: float = 300.0
    longest: dict[str, float] = field(default_factory=dict)

    def saw(self, phase: str, gap: float) -> None:
        """A gap of so many seconds has ended with a mark."""
        kind = self._kind(phase)
        self.longest[kind] = max(self.longest.get(kind, 0.0), gap)

    def limit(self, phase: str) -> float:
        """Seconds after which a rank without a mark is stuck."""
        if phase == DATA:
            return math.inf
        kind = self._kind(phase)
        allowance = {START: self.first_step, FIRST_STEP: self.first_step, CHECKPOINT: self.save}
        least = max(self.timeout, allowance.get(phase, allowance.get(kind, 0.0)))
        return max(least, GROWTH * self.longest.get(kind, 0.0))

    def silence(self, phase: str) -> float:
        """Seconds without a heartbeat that a busy machine explains: a library that is loaded from a cold disk lets no
        other thread run."""
        return max(self.timeout, self.start) if phase in STARTING else self.timeout

    @staticmethod
    def _kind(phase: str) -> str:
        if phase == DATA:
            return DATA
        return START if phase in STARTING else phase if phase == CHECKPOINT else "step"
