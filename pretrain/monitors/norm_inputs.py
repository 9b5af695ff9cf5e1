"""Root mean square of what enters each norm of the blocks, and its growth since step 1.

||dLN/dx|| = O(sqrt(d) / ||x||) (DeepNet, section 3): a growing input is a vanishing gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from pretrain.models.layers import ModelSpec
from pretrain.monitors.listening import recomputing
from pretrain.monitors.norm_flow import NormFlow
from pretrain.monitors.signals import Profiles
from pretrain.parallel.engine import Engine
from pretrain.state.values import mapping, maybe, numbers


class NormInputs(NormFlow):
    """RMS of what the forward pass hands to each norm; recomputation is left out.

    The growth is there from step 1 on, also after a resume; not where step 1 was not sampled.
    """

    def __init__(self, spec: ModelSpec):
        super().__init__(spec)
        self.first: dict[str, list[float]] | None = None
        """The RMS at step 1."""
        self.is_first = False

    def before_step(self, engine: Engine) -> None:
        self.is_first = self.first is None and engine.optimizer_step_count() == 0
        super().before_step(engine)

    def listener(self, row: int) -> Any:
        def listen(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if module.training and not recomputing():
                self.note(row, inputs[0].detach())

        return listen

    def profiles(self, sums: Tensor, maxima: Tensor) -> Profiles:
        rms = self.rms(sums)
        if self.is_first:
            self.first = rms
        if self.first is None or not _alike(rms, self.first):  # of another model: there is nothing to compare
            return {"norm_input_rms": rms}
        growth = {
            group: [now / then if then else float("nan") for now, then in zip(values, self.first[group], strict=True)]
            for group, values in rms.items()
        }
        return {"norm_input_rms": rms, "norm_input_growth": growth}

    def state_dict(self) -> dict[str, Any]:
        return {} if self.first is None else {"first": self.first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        first = maybe(mapping, state.get("first"), "first")
        self.first = first and {group: numbers(values, "first") for group, values in first.items()}


def _alike(now: Mapping[str, Sequence[float]], then: Mapping[str, Sequence[float]]) -> bool:
    """Whether they have the same groups of as many norms."""
    return {group: len(values) for group, values in now.items()} == {g: len(values) for g, values in then.items()}
