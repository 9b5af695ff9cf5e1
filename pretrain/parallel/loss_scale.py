"""What DeepSpeed's dynamic loss scaler knows, as JSON: fp16 goes on with the scale that it had found.

Without it a resumed run would begin with the first scale again, which overflows, and every overflow costs a batch.
"""

from __future__ import annotations

from typing import Any

STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What changes while training; the rest is configuration, and comes from the DeepSpeed JSON of each session."""


def scaler_state(scaler: Any) -> dict[str, float]:
    """State of a dynamic scaler; empty for a fixed one (fp32, bf16, fp16 with a stated scale). Equal on all ranks."""
    return {name: getattr(scaler, name) for name in STATE} if getattr(scaler, "dynamic", False) else {}


def load_scaler_state(scaler: Any, state: dict[str, float]) -> None:
    """Put a state back. Nothing happens where the scale is fixed, or was when it was saved."""
    if getattr(scaler, "dynamic", False):
        for name in STATE:
            if name in state:
                setattr(scaler, name, state[name])
