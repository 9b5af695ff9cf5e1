"""A sampled step that is given up for a rollback leaves no listener behind."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from pretrain.config.schema import ModelSection
from pretrain.models.decoder import decoder
from pretrain.models.layer_list import LayerList
from pretrain.monitors.attention import AttentionLogits
from pretrain.monitors.depth import DepthSignals
from pretrain.monitors.gradient_norm import GradientNorm
from pretrain.monitors.model_update import ModelUpdate
from pretrain.monitors.norm_gradients import NormGradients
from pretrain.monitors.norm_inputs import NormInputs
from pretrain.monitors.over_smoothing import OverSmoothing
from pretrain.monitors.parameters import ParameterSignals

torch.set_num_threads(1)
SPEC = decoder(ModelSection(family="decoder", decoder_layers=2, hidden_size=8, num_heads=2, ffn_size=8), 20, 0, 4)


def listeners(engine):
    hooks = [module._forward_pre_hooks | module._forward_hooks for module in engine.layers.modules()]
    return sum(map(len, hooks)) + len(engine.before_update)


def test_no_listener_is_left():
    engine = SimpleNamespace(
        layers=LayerList(SPEC, seed=3).train(),
        before_update=[],
        backward_scale=1.0,
        data_parallel_size=1,
        optimizer_step_count=lambda: 3,
        owned_shards=lambda: iter(()),
    )
    batch = {"attention_mask": torch.ones(2, 4, dtype=torch.long), "labels": torch.ones(2, 4, dtype=torch.long)}
    probe = SimpleNamespace(batches=[batch], rows=[range(2)], count=2)
    parameters = ParameterSignals(SPEC, [GradientNorm()])
    signals = [NormInputs(SPEC), NormGradients(SPEC), AttentionLogits(SPEC), OverSmoothing(SPEC), ModelUpdate(SPEC)]
    depth = DepthSignals([*signals, parameters], probe)
    trainer = SimpleNamespace(engine=engine, experiment=SimpleNamespace(monitors=SimpleNamespace(interval=2)))

    depth.on_step_begin(trainer, 4)
    assert listeners(engine) > 0
    depth.on_give_up(trainer)
    assert listeners(engine) == 0
    depth.on_step_begin(trainer, 5)
    assert listeners(engine) == 0
