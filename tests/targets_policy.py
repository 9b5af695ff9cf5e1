"""Faults planted into training, and steps that are refused by hand."""

from __future__ import annotations

import os

import numpy as np
import targets_engine as targets
import torch
from harness import train_main

from pretrain.training.callback import Callback

SCALE = 16.0


class Garbage:
    """Samples of which a range is nonsense: random input, and one rare piece as every label.

    Args:
        samples: the real ones.
        span: global indices [first, end).
    """

    def __init__(self, samples, span):
        self.samples, self.span = samples, range(*span)

    def __getattr__(self, name):
        return getattr(self.samples, name)

    def __getitem__(self, index):
        sample = self.samples[index]
        if index not in self.span:
            return sample
        noise = np.random.default_rng(index)
        pieces = int(sample["labels"].max()) + 1
        changed = {name: noise.integers(4, pieces, len(sample[name])) for name in ("input_ids", "decoder_input_ids")}
        labels = np.where(sample["labels"] >= 0, 700, sample["labels"])
        return sample | changed | {"labels": labels}


class Faults(Callback):
    """Stands first.

    Args:
        garbage: global sample indices [first, end) that are nonsense.
        nan: step -> so many first tries of it have NaN in a gradient of the last rank.
        rate: step -> factor on its learning rate, when it is first made; "always" for every time.
        dies_after: the process ends at the end of the first step after so many rollbacks.
    """

    def __init__(self, garbage=(0, 0), nan=(), rate=(), always=False, dies_after=0):
        self.garbage, self.nan, self.rate = garbage, dict(nan), dict(rate)
        self.always, self.dies_after, self.rollbacks, self.active = always, dies_after, 0, False

    def on_start(self, trainer):
        trainer.loader.samples = Garbage(trainer.loader.samples, self.garbage)
        engine = trainer.engine
        train_step = engine.train_step
        if engine.rank == torch.distributed.get_world_size() - 1:
            module = dict(engine.layers.built_layers())["decoder.layers.2"].ffn.fc1
            module.register_forward_hook(self._poison)

        def faulty(batches, lr):
            step = trainer.progress.step + 1
            self.active = self.nan.get(step, 0) > 0
            self.nan[step] = self.nan.get(step, 0) - 1
            factor = self.rate.get(step, 1.0) if self.always else self.rate.pop(step, 1.0)
            return train_step(batches, lr * factor)

        engine.train_step = faulty

    def _poison(self, module, inputs, output):
        if not (self.active and output.requires_grad):
            return output
        poisoned = output.clone()  # no view, whose hooks the activation in place would lose
        poisoned.register_hook(lambda gradient: torch.full_like(gradient, torch.nan))
        return poisoned

    def on_rollback(self, trainer, checkpoint):
        self.rollbacks += 1

    def on_step_end(self, trainer, report):
        if self.dies_after and self.rollbacks >= self.dies_after:
            os._exit(9)


def train_with_faults(rank, argv, faults):
    """The trainer's main with Faults(**faults); returns its exit code."""
    from pretrain import build

    callbacks = build.callbacks
    build.callbacks = lambda *args, **kwargs: [Faults(**faults), *callbacks(*args, **kwargs)]
    return train_main(rank, argv)


def refused_step(rank, changes, log, scaled=False):
    """Three steps with a refused one between, and without it: what each left behind, and what the judge was asked."""
    from pretrain.config.checks import check
    from pretrain.config.deepspeed import deepspeed_config
    from pretrain.parallel import collectives, process_group
    from pretrain.parallel.build import build_engine

    config, spec, own = targets.engine(changes, log)
    disturbed = _three_steps(own, True, scaled)
    own.close()
    plan = check(config, collectives.world_size(), "cpu")
    with process_group.quiet(log / f"rank_{rank}.log"):
        clean = build_engine(config, spec, deepspeed_config(config, plan))
    return disturbed, _three_steps(clean, False, scaled)


def _three_steps(own, disturb, scaled):
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    from pretrain.parallel.engine import Refusal

    if scaled:  # as fp16 has it; one overflow would halve it
        own.deepspeed.optimizer.loss_scaler = DynamicLossScaler(SCALE, 1000, 1.0, 1, False, dtype=torch.half)
    asked, found = [], {"results": []}
    refuses = [False]

    def judge(loss, grad_norm):
        asked.append((loss, grad_norm))
        return Refusal("for once", {"figure": 1.0}) if refuses[0] else None

    own.judge = judge
    for number, data in enumerate((0, 1, 2)):
        if disturb and number == 1:
            refuses[0] = True
            before = _state(own)
            found["refused"] = own.train_step(targets.own_batches(own, 7), 3e-3)
            found["unchanged"] = all(torch.equal(a, b) for a, b in zip(before, _state(own), strict=True))
            refuses[0] = False
        found["results"].append(own.train_step(targets.own_batches(own, data), targets.LR[number]))
    found["asked"] = asked
    found["updates"], found["scaler"] = own.optimizer_step_count(), own.loss_scaler_state()
    return found | {quantity: targets.shards(own, quantity) for quantity in ("weight", "exp_avg", "exp_avg_sq")}


def _state(own):
    tensors = [t.clone() for s in own.owned_shards(replicas=True) for t in (s.weight, s.exp_avg, s.exp_avg_sq)]
    # ZeRO-3 lets go of what it had gathered, and gathers it again in the next forward pass.
    used = [p.detach().clone() for p in own.layers.parameters() if not hasattr(p, "ds_tensor")]
    return [*tensors, *used, torch.tensor(own.optimizer_step_count())]
