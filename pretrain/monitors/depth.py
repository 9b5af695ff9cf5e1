"""layers.jsonl: every signal's profiles over depth, sampled every monitors.interval steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pretrain.monitors.probe import Probe
from pretrain.monitors.signals import Part, Profiles, Signal
from pretrain.parallel import collectives
from pretrain.state.run_files import LAYERS
from pretrain.training.callback import Callback
from pretrain.training.loop import StepReport, Trainer


class DepthSignals(Callback):
    """Samples step 1 and every interval-th; one sum and one maximum over all ranks a sample, nothing in other steps.

    Args:
        signals: what to measure.
        probe: the batch for the signals that want one.
    """

    phase = "signals"

    def __init__(self, signals: Sequence[Signal], probe: Probe):
        self.signals, self.probe = list(signals), probe
        self.latest: tuple[int, Profiles] = 0, {}
        """(step, profiles) of the newest sample, the same on every rank."""

    def on_start(self, trainer: Trainer) -> None:
        self.probe.place(trainer.engine)

    def _sampled(self, trainer: Trainer, step: int) -> bool:
        interval = trainer.experiment.monitors.interval
        return interval > 0 and (step == 1 or step % interval == 0)

    def on_step_begin(self, trainer: Trainer, step: int) -> None:
        if self._sampled(trainer, step):
            for signal in self.signals:
                signal.before_step(trainer.engine)

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        if not self._sampled(trainer, report.step):
            return
        engine = trainer.engine
        for signal in self.signals:
            signal.before_probe(engine, self.probe)
        if any(signal.wants_probe for signal in self.signals):
            self.probe.run(engine)
        profiles = gather(self.signals, [signal.collect(engine) for signal in self.signals])
        self.latest = report.step, profiles
        trainer.folder.append(LAYERS, {"step": report.step, "samples": trainer.progress.samples, "signals": profiles})


def gather(signals: Sequence[Signal], parts: Sequence[Part]) -> Profiles:
    """Every signal's profiles, from all ranks' parts. Collective."""

    def split(whole: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return whole.split([vector.numel() for vector in like])

    sums, maxima = [part.sums for part in parts], [part.maxima for part in parts]
    all_sums = split(collectives.sum_over(torch.cat(sums)), sums)
    all_maxima = split(collectives.max_over(torch.cat(maxima)), maxima)
    profiles: Profiles = {}
    for signal, own_sums, own_maxima in zip(signals, all_sums, all_maxima, strict=True):
        profiles |= signal.profiles(own_sums, own_maxima)
    return profiles
