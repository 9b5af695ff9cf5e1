"""Rows of the parameters' figures for each design, learned scalars cut between ranks, and fp16's loss scale."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from pretrain.config.schema import ModelSection, OptimizerSection
from pretrain.models.decoder import decoder
from pretrain.models.layer_list import LayerList
from pretrain.monitors.adam_rms import AdamRMS
from pretrain.monitors.gradient_norm import GradientNorm
from pretrain.monitors.parameter_rows import ParameterRows
from pretrain.monitors.parameters import ParameterSignals
from pretrain.monitors.qk_norm_gains import QKNormGains
from pretrain.monitors.scalars import Scalars
from pretrain.monitors.signals import stack_depths
from pretrain.monitors.update_norm import UpdateNorm
from pretrain.monitors.update_ratio import UpdateRatio
from pretrain.monitors.weight_norm import WeightNorm
from pretrain.parallel.engine import Shard

torch.set_num_threads(1)
LAYERS, HEADS = 3, 2
PARTS = {
    "pre_ln": {"self_attention", "ffn", "norms"},
    "keel": {"self_attention", "ffn", "norms"},
    "rezero": {"self_attention", "ffn", "gains"},
    "parallel": {"in_proj", "out_proj", "norms"},
    "sas": {"self_attention", "ffn", "norms", "gains"},
    "sas_p": {"self_attention", "ffn", "norms", "gains"},
    "value_skipinit": {"self_attention", "ffn", "norms", "gains"},
}
SHAPED = {
    ("scalar_alpha", "self_attention"): HEADS,
    ("scalar_beta", "self_attention"): HEADS,
    ("scalar_gamma", "self_attention"): HEADS,
    ("scalar_v_proj_identity", "self_attention"): 1,
    ("scalar_v_proj_gain", "self_attention"): 1,
    ("scalar_gain", "self_attention"): 1,
    ("scalar_gain", "ffn"): 1,
}
SCALARS = {
    "pre_ln": {},
    "parallel": {},
    "rezero": {("scalar_gain", "self_attention"): 1, ("scalar_gain", "ffn"): 1},
    "sas": SHAPED | {("scalar_skip_gain", "ffn"): 1},
    "sas_p": SHAPED,
    "value_skipinit": {
        ("scalar_alpha", "self_attention"): HEADS,
        ("scalar_beta", "self_attention"): HEADS,
        ("scalar_gain", "self_attention"): 1,
        ("scalar_gain", "ffn"): 1,
        ("scalar_skip_gain", "ffn"): 1,
    },
}


def spec_of(kind, qk_norm=False, **block):
    sizes = {"decoder_layers": LAYERS, "hidden_size": 8, "num_heads": HEADS, "ffn_size": 12, "qk_norm": qk_norm}
    return decoder(ModelSection(family="decoder", block={"kind": kind, **block}, **sizes), 20, 0, 6)


def engines(spec, ranks=2, loss_scale=1.0, updates=1):
    """The model's layers, each element with a value of its own, and one engine a rank, cut in every parameter."""
    layers = LayerList(spec)
    with torch.no_grad():
        for number, parameter in enumerate(layers.parameters()):
            parameter.copy_(1 + number + torch.arange(parameter.numel()).view(parameter.shape) / 1000)

    def shards(rank):
        for name, parameter in layers.named_parameters():
            n, flat = parameter.numel(), parameter.detach().view(-1)
            start, stop = n * rank // ranks, n * (rank + 1) // ranks
            if start < stop:
                own = flat[start:stop]
                moments = torch.zeros_like(own), (0.1 * own) ** 2
                gradient = lambda own=own: loss_scale * own  # noqa: E731
                yield Shard(name, tuple(parameter.shape), start, stop, own, *moments, gradient)

    return layers, [
        SimpleNamespace(
            layers=layers,
            before_update=[],
            data_parallel_size=ranks,
            backward_scale=ranks * loss_scale,
            owned_shards=lambda rank=rank: shards(rank),
            optimizer_step_count=lambda: updates,
        )
        for rank in range(ranks)
    ]


def sampled(make, ranks):
    """The profiles of a step in which only gradients appear, from all ranks' parts."""
    parts = []
    for engine in ranks:
        signal = make()
        signal.before_step(engine)
        for listener in engine.before_update:
            listener()
        parts.append(signal.collect(engine))
        assert engine.before_update == []
    sums = torch.stack([part.sums for part in parts]).sum(0)
    return make().profiles(sums, torch.stack([part.maxima for part in parts]).amax(0))


@pytest.mark.parametrize("kind", PARTS)
def test_parts_of_a_design(kind):
    """Every parameter has a row, and a layer's row is the sum of its parts'."""
    spec = spec_of(kind)
    rows = ParameterRows(spec)
    wholes = stack_depths(spec)
    shown = {group: size for group, (_, size) in rows.shown.groups.items()}
    assert shown == wholes | {f"decoder.{part}": LAYERS for part in PARTS[kind]}
    layers, ranks = engines(spec)
    found = sampled(lambda: ParameterSignals(spec, [WeightNorm()]), ranks)["weight_norm"]
    for layer in range(LAYERS):
        own = [p for name, p in layers.named_parameters() if name.startswith(f"decoder.layers.{layer}.")]
        squares = sum(float(p.detach().double().square().sum()) for p in own)
        assert found["decoder"][layer] == pytest.approx(math.sqrt(squares), rel=1e-6)
        assert math.hypot(*(found[f"decoder.{part}"][layer] for part in PARTS[kind])) == pytest.approx(
            found["decoder"][layer], rel=1e-9
        )


def test_a_layer_without_such_parameters_has_no_number():
    spec = spec_of("sas", norm=False)  # layer 0 alone has a norm
    figures = [GradientNorm(), WeightNorm(), UpdateNorm(), UpdateRatio(), AdamRMS(OptimizerSection())]
    found = sampled(lambda: ParameterSignals(spec, figures), engines(spec)[1])
    assert set(found) == {"gradient_norm", "weight_norm", "update_norm", "update_ratio", "adam_rms"}
    for groups in found.values():
        assert [math.isnan(value) for value in groups["decoder.norms"]] == [False, True, True]
        assert not any(math.isnan(value) for value in groups["decoder"])


def test_the_loss_scale_of_fp16_is_taken_out():
    """g = w and v = (w / 10)^2 / (1 - beta2) by construction; nothing is clipped."""
    spec, optimizer = spec_of("pre_ln"), OptimizerSection(betas=(0.9, 0.99), clip_norm=0)
    for scale in (1.0, 4096.0):
        _, ranks = engines(spec, loss_scale=scale, updates=1)
        figures = [GradientNorm(), WeightNorm(), AdamRMS(optimizer)]
        found = sampled(lambda figures=figures: ParameterSignals(spec, figures), ranks)
        for group, values in found["gradient_norm"].items():
            assert values == pytest.approx(found["weight_norm"][group], rel=1e-6)
            # sqrt(g^2 / v) with v = (w / 10)^2 / (1 - 0.99)
            assert found["adam_rms"][group] == pytest.approx([1.0] * len(values), rel=1e-5)


def test_weights_of_zero_have_no_ratio():
    spec = spec_of("pre_ln")
    layers, ranks = engines(spec)
    with torch.no_grad():
        layers.token_embedding.weight.zero_()
    figures = [WeightNorm(), UpdateNorm(), UpdateRatio()]
    found = sampled(lambda: ParameterSignals(spec, figures), ranks)["update_ratio"]
    assert math.isnan(found["token_embedding"][0])
    assert found["decoder"] == [0.0] * LAYERS


@pytest.mark.parametrize("kind", SCALARS)
def test_scalars_of_a_design(kind):
    """Figure, group and width; a vector of heads that two ranks share is whole again."""
    spec = spec_of(kind)
    layers, ranks = engines(spec)
    found = sampled(lambda: Scalars(spec), ranks)
    shown = {(figure, group.removeprefix("decoder.")) for figure, groups in found.items() for group in groups}
    assert shown == set(SCALARS[kind])
    parameters = dict(layers.named_parameters())
    for (figure, sublayer), width in SCALARS[kind].items():
        own = figure.removeprefix("scalar_").replace("v_proj_", "v_proj.")
        names = [f"{sublayer}.{own}", f"{sublayer}_{own}.weight"]
        for layer, value in enumerate(found[figure][f"decoder.{sublayer}"]):
            values = [parameters.get(f"decoder.layers.{layer}.{name}") for name in names]
            (parameter,) = [p for p in values if p is not None] or [None]
            if parameter is None:
                assert "v_proj" in figure  # of the first layer alone
                assert layer > 0
                assert math.isnan(value)
            else:
                assert value == (parameter.tolist() if width > 1 else parameter.item()), (figure, layer)


@pytest.mark.parametrize("kind", ["pre_ln", "parallel"])
def test_the_largest_gain_of_the_qk_norms(kind):
    spec = spec_of(kind, qk_norm=True)
    layers, ranks = engines(spec)
    with torch.no_grad():
        layers.get_parameter("decoder.layers.1.self_attention.k_norm.weight")[-1] = -1e4
    found = sampled(lambda: QKNormGains(spec), ranks)["qk_norm_gain_max"]
    parameters = {name: parameter.detach() for name, parameter in layers.named_parameters()}
    expected = [
        max(float(parameters[f"decoder.layers.{n}.self_attention.{x}_norm.weight"].abs().max()) for x in "qk")
        for n in range(LAYERS)
    ]
    assert expected[1] == 1e4
    assert found == {"decoder.self_attention": expected}


def test_nothing_is_shown_of_a_model_without():
    def refuse():
        raise AssertionError("shards were read for nothing")

    spec = spec_of("pre_ln")
    engine = SimpleNamespace(owned_shards=refuse)
    for make in (Scalars, QKNormGains):
        part = make(spec).collect(engine)
        assert make(spec).profiles(part.sums, part.maxima) == {}
