"""How long a rank may go without a mark of progress."""

from __future__ import annotations

from dataclasses import dataclass, field

START, FIRST_STEP, CHECKPOINT = "start", "first step", "checkpoint"
GROWTH = 3.0
"""How many times the longest gap seen so far may pass before a rank counts as stuck."""


@dataclass
class Limits:
    """Seconds by phase. Each grows with the longest gap between two marks that this rank has seen there.

    The start and the first step (compilation, first allocations, cold files) and saves have a long allowance. Gaps
    of the first step count for later steps too: whatever is slow by nature shows itself there. Gaps of a save or of
    the start do not.

    Args:
        timeout: least limit of all other phases.
        first_step: of the time before the end of the first step.
        save: of checkpoints.
    """

    timeout: float
    first_step: float
    save: float
    longest: dict[str, float] = field(default_factory=dict)

    def saw(self, phase: str, gap: float) -> None:
        """A gap of so many seconds has ended with a mark."""
        kind = self._kind(phase)
        self.longest[kind] = max(self.longest.get(kind, 0.0), gap)

    def limit(self, phase: str) -> float:
        """Seconds after which a rank without a mark is stuck."""
        allowance = {START: self.first_step, FIRST_STEP: self.first_step, CHECKPOINT: self.save}
        least = max(self.timeout, allowance.get(phase, 0.0))
        return max(least, GROWTH * self.longest.get(self._kind(phase), 0.0))

    @staticmethod
    def _kind(phase: str) -> str:
        return phase if phase in (START, CHECKPOINT) else "step"
