"""The trainer with gradients made infinite at chosen steps, and a witness of what a skipped step left behind."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from harness import train_main

from pretrain.training.callback import Callback


class Poison(Callback):
    """Makes one gradient of the last rank infinite, in the first `attempts[step]` tries of a step."""

    def __init__(self, attempts, report):
        self.attempts, self.report, self.active, self.seen = dict(attempts), Path(report), False, []

    def on_start(self, trainer):
        from pretrain.parallel import collectives

        engine = trainer.engine
        if collectives.rank() == collectives.world_size() - 1:
            parameter = dict(engine.layers.named_parameters())["decoder.layers.2.ffn.fc1.weight"]
            parameter.register_hook(lambda g: torch.full_like(g, torch.inf) if self.active else g)
        train_step = engine.train_step

        def watched(batches, lr):
            step = trainer.progress.step + 1
            self.active = self.attempts.get(step, 0) > 0
            self.attempts[step] = self.attempts.get(step, 0) - 1
            before = self._state(engine)
            result = train_step(batches, lr)
            same = all(torch.equal(a, b) for a, b in zip(before, self._state(engine), strict=True))
            self.seen.append([step, lr, self.active, result.skipped, same])
            return result

        engine.train_step = watched

    def _state(self, engine):
        tensors = [t.clone() for s in engine.owned_shards(replicas=True) for t in (s.weight, s.exp_avg, s.exp_avg_sq)]
        published = [p.detach().clone() for p in engine.layers.parameters()]
        return [*tensors, *published, torch.tensor(engine.optimizer_step_count())]

    def on_close(self, trainer):
        from pretrain.parallel import collectives

        self.report.with_suffix(f".{collectives.rank()}").write_text(json.dumps(self.seen))


def train_poisoned(rank, argv, attempts, report):
    """The trainer's main with a Poison as its first callback; returns its exit code."""
    from pretrain import build

    callbacks = build.callbacks
    build.callbacks = lambda *args, **kwargs: [Poison(attempts, report), *callbacks(*args, **kwargs)]
    return train_main(rank, argv)
