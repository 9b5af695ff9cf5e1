"""Growth against step 1: from where it counts, and what a resume finds."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from pretrain.config.schema import ModelSection
from pretrain.models.decoder import decoder
from pretrain.models.layer_list import LayerList
from pretrain.monitors.depth import DepthSignals
from pretrain.monitors.norm_inputs import NormInputs

torch.set_num_threads(1)
SPEC = decoder(ModelSection(family="decoder", decoder_layers=2, hidden_size=8, num_heads=2, ffn_size=8), 20, 0, 4)


def sample(signal, steps_before, seed):
    """Profiles over one forward pass of a model of this seed."""
    layers = LayerList(SPEC, seed=seed).train()
    engine = SimpleNamespace(layers=layers, optimizer_step_count=lambda: steps_before)
    signal.before_step(engine)
    ids = torch.arange(8).view(2, 4)
    layers((ids, torch.ones_like(ids), torch.arange(2)))
    return signal.profiles(*signal.collect(engine))


def resumed(signal):
    """A new signal with what a checkpoint kept of this one."""
    kept = DepthSignals([signal], probe=None).state_dict()
    fresh = NormInputs(SPEC)
    DepthSignals([fresh], probe=None).load_state_dict(json.loads(json.dumps(kept)))
    return fresh


def test_against_step_1_also_after_a_resume():
    signal = NormInputs(SPEC)
    first = sample(signal, 0, seed=1)
    assert first["norm_input_growth"] == {group: [1.0, 1.0] for group in first["norm_input_rms"]}
    for again in (signal, resumed(signal), resumed(resumed(signal))):
        later = sample(again, 7, seed=2)
        for group, rows in later["norm_input_rms"].items():
            ratios = [row / start for row, start in zip(rows, first["norm_input_rms"][group], strict=True)]
            assert later["norm_input_growth"][group] == pytest.approx(ratios, rel=1e-12)
            assert min(abs(ratio - 1) for ratio in ratios) > 1e-4


def test_none_where_step_1_was_not_sampled():
    """A run that is watched from a later step on; a checkpoint from before there was such a figure."""
    for signal in (NormInputs(SPEC), resumed(NormInputs(SPEC))):
        assert set(sample(signal, 3, seed=1)) == {"norm_input_rms"}
        assert set(sample(signal, 4, seed=1)) == {"norm_input_rms"}


def test_a_step_that_is_thrown_away_is_not_the_first():
    signal = NormInputs(SPEC)
    engine = SimpleNamespace(layers=LayerList(SPEC, seed=3).train(), optimizer_step_count=lambda: 0)
    signal.before_step(engine)
    ids = torch.arange(8).view(2, 4)
    engine.layers((ids, torch.ones_like(ids), torch.arange(2)))
    profiles = sample(signal, 0, seed=1)
    assert profiles["norm_input_rms"] == sample(NormInputs(SPEC), 0, seed=1)["norm_input_rms"]
    assert set(profiles["norm_input_growth"]["decoder.ffn"]) == {1.0}
    assert not any(module._forward_pre_hooks for module in engine.layers.modules())
