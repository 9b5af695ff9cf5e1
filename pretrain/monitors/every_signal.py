"""All depth signals, in the order in which layers.jsonl shows them."""

from __future__ import annotations

from pretrain.models.layers import ModelSpec
from pretrain.monitors.norm_inputs import NormInputs
from pretrain.monitors.signals import Signal
from pretrain.monitors.update_norm import UpdateNorm


def every_signal(spec: ModelSpec) -> list[Signal]:
    """One of each, for a model."""
    return [NormInputs(spec), UpdateNorm(spec)]
