"""Signals of a training step under activation checkpointing: recomputed forward passes do not count, in any design."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from targets_models import batch, logits, section, spec

from pretrain.blocks.registry import BLOCKS
from pretrain.models.layer_list import LayerList
from pretrain.monitors.norm_gradients import NormGradients
from pretrain.monitors.norm_inputs import NormInputs

torch.set_num_threads(1)
CASES = [(kind, family) for kind in BLOCKS.kinds() for family in sorted(BLOCKS[kind].families)]


def measured(config, every):
    """What enters each norm of the blocks and the gradients that each hands back, over two micro-batches."""
    layers = LayerList(spec(config), seed=5, checkpoint_every=every).train()
    engine = SimpleNamespace(layers=layers, optimizer_step_count=lambda: 0, backward_scale=1.0)
    signals = [NormInputs(spec(config)), NormGradients(spec(config))]
    for signal in signals:
        signal.before_step(engine)
    for _ in range(2):
        logits(layers, config, batch(config.family)).square().sum().backward()
    profiles = {}
    for signal in signals:
        profiles |= signal.profiles(*signal.collect(engine))
    return profiles


@pytest.mark.parametrize(("kind", "family"), CASES)
def test_recomputation_does_not_count(kind, family):
    config = section(family, kind, layers=3, dropout=0.3)
    kept = measured(config, every=0)
    assert kind == "rezero" or min(v for figure in kept.values() for rows in figure.values() for v in rows) > 0
    assert measured(config, every=1) == kept
