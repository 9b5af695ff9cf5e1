"""layers.jsonl: every signal's profiles over depth, sampled every monitors.interval steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pretrain.monitors.probe import Probe
from pretrain.monitors.signals import Part, Profiles, Signal
from pretrain.parallel import collectives
from pretrain.state.reader import Checkpoint
from pretrain.state.run_files import LAYERS
from pretrain.state.values import mapping
from pretrain.training.callback import Callback
from pretrain.training.loop import StepReport, Trainer

DIGITS = 7
FIRST = (1, 2, 5, 10)
"""Sampled whatever the interval: how a run begins shows whether it is stuck (DeepNet, section 3). Of a short interval's
only step 1."""


class DepthSignals(Callback):
    """Samples the first steps and every interval-th: one sum and one maximum over all ranks; other steps do nothing.

    Args:
        signals: what to measure.
        probe: the batch for the signals that want one.
    """

    phase = "signals"

    def __init__(self, signals: Sequence[Signal], probe: Probe):
        self.signals, self.probe = list(signals), probe
        self.latest: tuple[int, Profiles] = 0, {}
        """(step, profiles) of the newest sample, the same on every rank."""
        self._listening = False

    def on_resume(self, trainer: Trainer, checkpoint: Checkpoint) -> None:
        for signal in self.signals:
            signal.load_tensors(partial(checkpoint.rank_tensor, 0))

    def on_start(self, trainer: Trainer) -> None:
        self.probe.place(trainer.engine)
        step = trainer.progress.step
        for signal in self.signals:
            if problem := signal.start(trainer.engine, self.probe, step):
                trainer.folder.event("alert", step, reason=problem)

    def _sampled(self, trainer: Trainer, step: int) -> bool:
        interval = trainer.experiment.monitors.interval
        first = FIRST if interval > FIRST[-1] else FIRST[:1]
        return interval > 0 and (step in first or step % interval == 0)

    def on_step_begin(self, trainer: Trainer, step: int) -> None:
        if self._sampled(trainer, step):
            self._listening = True
            for signal in self.signals:
                signal.before_step(trainer.engine)

    def on_give_up(self, trainer: Trainer) -> None:
        for signal in self.signals if self._listening else ():
            signal.before_probe(trainer.engine, self.probe)
            signal.collect(trainer.engine)  # leaves no hook; what it gives is dropped
        self._listening = False

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        if not self._sampled(trainer, report.step):
            return
        engine = trainer.engine
        for signal in self.signals:
            signal.before_probe(engine, self.probe)
        if any(signal.wants_probe for signal in self.signals):
            self.probe.run(engine)
        profiles = gather(self.signals, [signal.collect(engine) for signal in self.signals])
        self.latest, self._listening = (report.step, profiles), False
        written = {"step": report.step, "samples": trainer.progress.samples, "signals": shortened(profiles)}
        trainer.folder.append(LAYERS, written)

    def tensors(self) -> dict[str, Tensor]:
        return {name: tensor for signal in self.signals for name, tensor in signal.tensors().items()}

    def state_dict(self) -> dict[str, Any]:
        return {type(signal).__name__: signal.state_dict() for signal in self.signals}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.latest = 0, {}
        for signal in self.signals:
            name = type(signal).__name__
            signal.load_state_dict(dict(mapping(state.get(name, {}), name)))


def gather(signals: Sequence[Signal], parts: Sequence[Part]) -> Profiles:
    """Every signal's profiles, from all ranks' parts. Collective."""

    def split(whole: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return whole.split([vector.numel() for vector in like])

    sums, maxima = [part.sums for part in parts], [part.maxima for part in parts]
    # A maximum over ranks may lose a NaN to another rank's number; infinity stays, and is an alarm as well.
    maxima = [part.where(~part.isnan(), torch.inf) for part in maxima]
    all_sums = split(collectives.sum_over(torch.cat(sums)), sums)
    all_maxima = split(collectives.max_over(torch.cat(maxima)), maxima)
    profiles: Profiles = {}
    for signal, own_sums, own_maxima in zip(signals, all_sums, all_maxima, strict=True):
        profiles |= signal.profiles(own_sums, own_maxima)
    return profiles


def shortened(values: Any) -> Any:
    """Numbers at any depth with DIGITS significant digits: half the bytes of a file that is long at 1000 layers.

    What is not finite becomes None.
    """
    if isinstance(values, float):
        return float(f"{values:.{DIGITS}g}") if math.isfinite(values) else None
    if isinstance(values, list):
        return [shortened(value) for value in values]
    return {key: shortened(value) for key, value in values.items()} if isinstance(values, dict) else values
