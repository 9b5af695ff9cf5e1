"""How far a run has come, and why it ends."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from enum import IntEnum
from typing import Any

from pretrain.errors import EXIT_DONE, EXIT_ORPHANED, EXIT_STOPPED_BY_SIGNAL, EXIT_UNSTABLE, EXIT_WRONG_INPUT


class Stop(IntEnum):
    """Why the loop ends. Ranks agree on the largest value that any of them holds."""

    NO = 0
    STOP_AT_STEP = 1
    MAX_STEPS = 2
    ORPHANED = 3
    SIGHUP = 4
    SIGINT = 5
    SIGTERM = 6
    UNSTABLE = 7
    FOLDER_LOST = 8

    @property
    def reason(self) -> str:
        """As events.jsonl has it."""
        if self == Stop.ORPHANED:
            return "launcher died"
        if self == Stop.FOLDER_LOST:
            return "run.dir is another folder"
        return self.name if self in SIGNALS else self.name.lower()

    @property
    def exit_code(self) -> int:
        if self in SIGNALS:
            return EXIT_STOPPED_BY_SIGNAL
        codes = {
            Stop.ORPHANED: EXIT_ORPHANED,
            Stop.UNSTABLE: EXIT_UNSTABLE,
            Stop.FOLDER_LOST: EXIT_WRONG_INPUT,
        }
        return codes.get(self, EXIT_DONE)

    @property
    def from_outside(self) -> bool:
        """Whether somebody wants this session gone soon."""
        return self == Stop.ORPHANED or self in SIGNALS


SIGNALS = (Stop.SIGHUP, Stop.SIGINT, Stop.SIGTERM)
"""A signal outranks the launcher's death, which often follows from the same one: the event then tells which it was."""


@dataclass
class Progress:
    """Counted over all sessions of a run."""

    step: int = 0
    """Optimizer steps done."""
    samples: int = 0
    tokens: int = 0
    """Source and target positions, padding included."""
    seconds: float = 0.0
    """Wall time inside the loop."""
    loss: float | None = None
    """Training loss of the last step."""
    skipped: int = 0
    """Steps that were thrown away, for whatever reason."""
    nonfinite: int = 0
    """Of these, the ones whose gradient was not finite."""

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for field in fields(self):
            if field.name in state:
                setattr(self, field.name, state[field.name])
