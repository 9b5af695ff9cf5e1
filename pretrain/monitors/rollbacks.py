"""The rollbacks of a run, as its events tell them: they hold in every later session, wherever it starts."""

from __future__ import annotations

import json
from typing import Any

from pretrain.parallel import collectives
from pretrain.training.run_folder import RunFolder

NEEDED = {"step", "to_step", "sample_ranges", "rate_factor", "rate_last_step"}


class Rollbacks:
    """In the order in which they were made."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        """step (where it was decided), to_step, sample_ranges, rate_factor, rate_last_step."""

    def read(self, folder: RunFolder) -> None:
        """Read them anew. Collective: rank 0 reads."""
        told = folder.events() if collectives.is_first() else ()
        found = json.dumps([event for event in told if event["event"] == "rollback" and event.keys() >= NEEDED])
        self.entries = json.loads(collectives.share_text(found))

    @property
    def sample_ranges(self) -> list[list[int]]:
        """All samples that they have left out."""
        return [pair for entry in self.entries for pair in entry["sample_ranges"]]

    def since(self, step: int) -> int:
        """How many were decided after a step."""
        return sum(entry["step"] > step for entry in self.entries)

    def unknown_to(self, step: int) -> list[dict[str, Any]]:
        """Those that a checkpoint of this step knows nothing of: after one to step N, new checkpoints lie beyond N."""
        return [entry for entry in self.entries if entry["to_step"] >= step]
