"""layers.jsonl: every signal's profile over depth, sampled every monitors.interval steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pretrain.monitors.signals import Signal
from pretrain.parallel import collectives
from pretrain.state.run_files import LAYERS
from pretrain.training.callback import Callback
from pretrain.training.loop import StepReport, Trainer


class DepthSignals(Callback):
    """Samples step 1 and every interval-th; one sum over all ranks a sample, nothing in other steps."""

    def __init__(self, signals: Sequence[Signal]):
        self.signals = list(signals)

    def _sampled(self, trainer: Trainer, step: int) -> bool:
        interval = trainer.experiment.monitors.interval
        return interval > 0 and (step == 1 or step % interval == 0)

    def on_step_begin(self, trainer: Trainer, step: int) -> None:
        if self._sampled(trainer, step):
            for signal in self.signals:
                signal.prepare(trainer.engine)

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        if not self._sampled(trainer, report.step):
            return
        local = [vector for signal in self.signals for vector in signal.collect(trainer.engine)]
        vectors = iter(collectives.sum_over(torch.cat(local)).split([vector.numel() for vector in local]))
        profiles = {}
        for signal in self.signals:
            sums, counts = next(vectors), next(vectors)
            profiles[signal.name] = signal.rows.split(signal.value(sums, counts))
        trainer.folder.append(LAYERS, {"step": report.step, "samples": trainer.progress.samples, "signals": profiles})
