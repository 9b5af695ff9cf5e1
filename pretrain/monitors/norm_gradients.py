"""Root mean square of the gradient that each norm of the blocks hands back to its input."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from pretrain.monitors.listening import recomputing
from pretrain.monitors.norm_flow import NormFlow
from pretrain.monitors.signals import Part, Profiles
from pretrain.parallel.engine import Engine


class NormGradients(NormFlow):
    """RMS of dL/dx through the norm alone (not through a skip around it).

    L is the mean loss over the target tokens of the global batch, the same in every layout.
    """

    def before_step(self, engine: Engine) -> None:
        self.scale = engine.backward_scale  # fp16 may change its part of it after the step
        super().before_step(engine)

    def listener(self, row: int) -> Any:
        catch = partial(self.note, row)

        def listen(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            # The backward pass goes through the first forward's graph, also where that keeps no activations: a
            # recomputed one only fills in what it lacks.
            if not module.training or recomputing():
                return None
            x = inputs[0].view_as(inputs[0])  # a name for it that nobody but the norm reads
            x.register_hook(catch)
            return (x, *inputs[1:])

        return listen

    def collect(self, engine: Engine) -> Part:
        part = super().collect(engine)
        part.sums[: self.rows.total] /= self.scale**2
        return part

    def profiles(self, sums: Tensor, maxima: Tensor) -> Profiles:
        return {"norm_input_gradient": self.rms(sums)}
