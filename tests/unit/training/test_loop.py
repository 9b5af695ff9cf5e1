"""What the loop does around its steps."""

from __future__ import annotations

import gc
from types import SimpleNamespace

from torch import nn

from pretrain.parallel.engine import StepResult
from pretrain.parallel.plain import PlainEngine
from pretrain.training.callback import Callback
from pretrain.training.loop import Trainer
from pretrain.training.progress import Stop


class Witness(Callback):
    def __init__(self):
        self.frozen = []

    def on_start(self, trainer):
        self.frozen.append(gc.get_freeze_count())

    def on_step_end(self, trainer, report):
        self.frozen.append(gc.get_freeze_count())


def test_the_collector_does_not_walk_through_the_model_in_a_step():
    gc.unfreeze()
    witness = Witness()
    sizes = SimpleNamespace(max_steps=2, last_step=2)
    trainer = Trainer(
        SimpleNamespace(train=sizes, optimizer=SimpleNamespace(lr=1e-3), batch=SimpleNamespace(global_batch_size=8)),
        spec=None,
        engine=SimpleNamespace(needs_data=True, train_step=lambda batches, lr: StepResult(2.0, 8, 1.0, 1.0, None)),
        loader=SimpleNamespace(next=list, close=lambda: None),
        schedule=SimpleNamespace(factor=lambda step: 1.0),
        tokens_per_sample=4,
        folder=SimpleNamespace(ending=lambda: None),
        callbacks=[witness],
    )
    assert trainer.run() == Stop.MAX_STEPS
    at_first, *in_steps = witness.frozen
    assert at_first == 0
    assert len(in_steps) == 2
    assert min(in_steps) > 10_000, "what the interpreter and torch have made, at the least"
    assert gc.get_freeze_count() == 0


def test_the_mode_reaches_every_module():
    engine = object.__new__(PlainEngine)
    engine.deepspeed = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.5)))
    engine._modules = list(engine.deepspeed.modules())
    for training in (False, True, True, False):
        engine._set_mode(training)
        assert {module.training for module in engine.deepspeed.modules()} == {training}
