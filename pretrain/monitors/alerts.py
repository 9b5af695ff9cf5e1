"""Verdicts while training: judged at every sample, told in events.jsonl when one gets worse."""

from __future__ import annotations

import json
from typing import Any

from pretrain.config.schema import VerdictsSection
from pretrain.monitors.depth import DepthSignals
from pretrain.monitors.metrics import Metrics
from pretrain.monitors.verdict_history import History
from pretrain.monitors.verdicts import Level, Verdict, verdicts, worst_of
from pretrain.state.run_files import VERDICTS
from pretrain.training.callback import Callback
from pretrain.training.loop import StepReport, Trainer

CALM = 3
"""Samples in a row that must be better before the same verdict counts as getting worse again."""


class Verdicts(Callback):
    """The same on every rank. RUN/verdicts.json has the newest ones.

    Args:
        depth: whose samples are judged; stands before this callback.
        metrics: whose spike score is judged with them; stands before this callback.
        thresholds: the section `verdicts`.
    """

    def __init__(self, depth: DepthSignals, metrics: Metrics, thresholds: VerdictsSection):
        self.depth, self.metrics, self.thresholds = depth, metrics, thresholds
        self.history = History()
        self.step = 0
        """Of the newest sample."""
        self.latest: list[Verdict] = []
        """On it, the worst first."""
        self._told: dict[str, int] = {}
        """Signal -> level that was told last."""
        self._better: dict[str, int] = {}
        """Signal -> samples in a row that were better than that."""

    @property
    def worst(self) -> Verdict | None:
        """For a line of text; None if all is well."""
        return worst_of(self.latest)

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        step, profiles = self.depth.latest
        if step != report.step:
            return
        score = self.metrics.latest.get("spike_score")
        if score is not None:
            profiles = profiles | {"spike_score": {"model": [score]}}
        self.step, self.latest = step, verdicts(profiles, self.history, self.thresholds)
        self.history.add(step, profiles)
        for verdict in self.latest:
            if self._worse(verdict):
                found = verdict.to_json()
                trainer.folder.event("alert", step, reason=found.pop("sentence"), **found)
        newest = {"step": step, "verdicts": [verdict.to_json() for verdict in self.latest]}
        trainer.folder.write(VERDICTS, json.dumps(newest, indent=1) + "\n")

    def _worse(self, verdict: Verdict) -> bool:
        """Whether to tell it: worse than what was told last, which is forgotten after a calm."""
        signal, told = verdict.signal, self._told.get(verdict.signal, Level.OK)
        self._better[signal] = self._better.get(signal, 0) + 1 if verdict.level < told else 0
        if verdict.level > told or self._better[signal] >= CALM:
            self._told[signal], self._better[signal] = int(verdict.level), 0
        return verdict.level > told

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history.state_dict(), "told": dict(self._told), "better": dict(self._better)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history.load_state_dict(state.get("history", {}))
        self._told, self._better = dict(state.get("told", {})), dict(state.get("better", {}))
        self.step, self.latest = 0, []
