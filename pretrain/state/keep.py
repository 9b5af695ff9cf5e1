"""Which checkpoints of a run stay, and the removal of the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pretrain.state.files import reached
from pretrain.state.manifest import NAME as MANIFEST
from pretrain.state.reader import complete_checkpoints, list_checkpoints, step_of
from pretrain.state.writer import remove_checkpoint


@dataclass(frozen=True)
class Keep:
    """The newest `last`, and for ever those whose step is a multiple of `every` (0: none)."""

    last: int
    every: int = 0

    def why(self, steps: Iterable[int]) -> dict[int, str]:
        """Step -> why it stays, newest first; empty for those that go."""
        ordered = sorted(steps, reverse=True)
        return {step: self._why(step, place) for place, step in enumerate(ordered)}

    def _why(self, step: int, place: int) -> str:
        reasons = ["newest"] if place == 0 else []
        if place < self.last and self.last > 1:
            reasons.append(f"last {self.last}")
        if self.every and step % self.every == 0:
            reasons.append(f"every {self.every}")
        return ", ".join(reasons)


def to_remove(checkpoints: Path, keep: Keep, newest: int | None = None) -> list[Path]:
    """Step folders that go, newest first: those that the rule leaves out, and older ones without a manifest.

    Args:
        checkpoints: RUN/checkpoints.
        keep: the rule.
        newest: look only at steps up to this one; default: at all.
    """
    folders = [path for path in list_checkpoints(checkpoints) if newest is None or step_of(path) <= newest]
    found = complete_checkpoints(checkpoints)
    complete = [step_of(path) for path in found if path in folders]
    if not complete:
        return []
    why = keep.why(complete)
    old = [path for path in folders if step_of(path) < complete[0] and not why.get(step_of(path))]
    # One with a manifest of another step than its name says is not the run's own: it is left alone.
    return [path for path in old if path in found or not (path / MANIFEST).exists()]


def prune(checkpoints: Path, keep: Keep, newest: int | None = None) -> list[Path]:
    """Remove what the rule leaves out; returns what went. At least the newest complete checkpoint stays."""
    gone = to_remove(checkpoints, keep, newest)
    for folder in gone:
        remove_checkpoint(folder)
    reached("pruned")
    return gone
