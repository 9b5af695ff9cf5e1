"""All depth signals, in the order in which layers.jsonl shows them."""

from __future__ import annotations

from pretrain.config.schema import Experiment
from pretrain.models.layers import ModelSpec
from pretrain.monitors.adam_rms import AdamRMS
from pretrain.monitors.attention import AttentionLogits
from pretrain.monitors.effective_rank import EffectiveRank
from pretrain.monitors.gradient_norm import GradientNorm
from pretrain.monitors.model_update import ModelUpdate
from pretrain.monitors.model_update_bound import ModelUpdateBound
from pretrain.monitors.norm_gradients import NormGradients
from pretrain.monitors.norm_inputs import NormInputs
from pretrain.monitors.over_smoothing import OverSmoothing
from pretrain.monitors.parameters import ParameterSignals
from pretrain.monitors.qk_norm_gains import QKNormGains
from pretrain.monitors.scalars import Scalars
from pretrain.monitors.signals import Signal
from pretrain.monitors.update_norm import UpdateNorm
from pretrain.monitors.update_ratio import UpdateRatio
from pretrain.monitors.weight_norm import WeightNorm


def every_signal(experiment: Experiment, spec: ModelSpec) -> list[Signal]:
    """One of each, for an experiment and its model."""
    parameters = [GradientNorm(), WeightNorm(), UpdateNorm(), UpdateRatio(), AdamRMS(experiment.optimizer)]
    return [
        NormInputs(spec),
        NormGradients(spec),
        AttentionLogits(spec),
        OverSmoothing(spec),
        *([EffectiveRank(spec)] if experiment.monitors.effective_rank else []),
        ParameterSignals(spec, parameters),
        Scalars(spec),
        QKNormGains(spec),
        ModelUpdate(spec),
        ModelUpdateBound(spec, experiment.train.seed),
    ]
