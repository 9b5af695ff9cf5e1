"""DeepNet's bound against its equations written out, and the figures by which the paper chose its constants."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import targets_model_update as direct
import torch

from pretrain.blocks.deepnorm import deepnorm_constants
from pretrain.config.schema import ModelSection
from pretrain.models.decoder import decoder
from pretrain.models.encoder_decoder import encoder_decoder
from pretrain.models.layer_list import LayerList
from pretrain.monitors.model_update_bound import (
    ModelUpdateBound,
    Scales,
    encoder_decoder_bound,
    first_weights,
    stack_bound,
)

torch.set_num_threads(1)
VOCABULARY, LENGTH, SEED = 30, 5, 7


def scales(*rows):
    return Scales(*torch.tensor(rows, dtype=torch.float64).unbind(1))


def test_written_out():
    """By hand: (5 / 2) * 0.1 + (13 / 2) * 0.2, and what a cross-attention of 2 * 3 / 4 makes of it."""
    encoder = scales((3.0, 4.0, 0.1), (5.0, 12.0, 0.2))
    assert float(stack_bound(encoder, 2.0)) == pytest.approx(0.25 + 1.3)
    cross = scales((2.0, 3.0, 0.5))
    decoder = scales((3.0, 4.0, 0.0), (2.0, 3.0, 0.5), (0.0, 1.0, 8.0))
    expected = 1.5 * 1.55 + math.sqrt(13) / 4 * 0.5 + 1 / 4 * 8
    assert float(encoder_decoder_bound(encoder, decoder, cross, 2.0, 4.0)) == pytest.approx(expected)


def at_the_constants(sublayers, alpha, beta):
    """The bound of a stack with v = w = beta, each ||dtheta|| being the theorem's own factor sqrt(v^2 + w^2)/alpha."""
    return float(stack_bound(scales(*[(beta, beta, math.sqrt(2) * beta / alpha)] * sublayers), alpha))


def test_deepnorms_constants_make_it_one():
    """2N(v^2 + w^2)/alpha^2 = 1, 3M(v^2 + w^2)/alpha_d^2 = 1, (N^4 M/27)^(1/4) (v^2 + w^2)/alpha_e^2 = 1; the last with
    the constants as published, rounded."""
    assert at_the_constants(2 * 18, *deepnorm_constants("decoder", 0, 18)) == pytest.approx(1)
    N, M = 18, 12
    assert at_the_constants(3 * M, *deepnorm_constants("decoder", N, M)) == pytest.approx(1)
    encoder = at_the_constants(2 * N, *deepnorm_constants("encoder", N, M)) / (2 * N)
    assert (N**4 * M / 27) ** 0.25 * encoder == pytest.approx(1.012, abs=1e-3)


def spec_of(kind, encoder_layers, **model):
    depths = {"encoder_layers": encoder_layers, "decoder_layers": 3}
    family = "encoder_decoder" if encoder_layers else "decoder"
    sizes = {"hidden_size": 64, "num_heads": 2, "ffn_size": 96}
    config = ModelSection.model_validate({"family": family, "block": {"kind": kind}, **depths, **sizes, **model})
    build = encoder_decoder if encoder_layers else decoder
    return config, build(config, VOCABULARY, LENGTH, LENGTH)


def halves(layers):
    """An engine's shards, each parameter in two unequal parts."""
    for name, parameter in layers.named_parameters():
        flat = parameter.detach().view(-1)
        for start, stop in ((0, flat.numel() // 3), (flat.numel() // 3, flat.numel())):
            yield SimpleNamespace(
                name=name, shape=tuple(parameter.shape), start=start, stop=stop, weight=flat[start:stop]
            )


def engine_of(layers):
    return SimpleNamespace(layers=layers, owned_shards=lambda: halves(layers))


@pytest.mark.parametrize("encoder_layers", [0, 2])
@pytest.mark.parametrize("kind", ["deepnorm", "post_ln"])
def test_of_a_model(kind, encoder_layers):
    """fp64 on both sides, from the same fp32 weights; alpha is 1 without DeepNorm."""
    config, spec = spec_of(kind, encoder_layers)
    layers = LayerList(spec, seed=SEED)
    signal = ModelUpdateBound(spec, SEED)
    assert signal.start(engine_of(layers), None, 0) == ""
    first = {name: parameter.detach().double().clone() for name, parameter in layers.named_parameters()}
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter += 0.1 * torch.rand(1) * torch.randn_like(parameter)
    weights = {name: parameter.detach().double() for name, parameter in layers.named_parameters()}
    found = signal.profiles(*signal.collect(engine_of(layers)))
    assert found["model_update_bound"]["model"] == pytest.approx([direct.bound(weights, first, config)], rel=1e-7)


def test_a_fresh_model_has_the_papers_sizes():
    """rms / xavier_std of 4096 normal numbers is beta within a few parts in a hundred; nothing has moved."""
    _, spec = spec_of("deepnorm", 0)
    signal, engine = ModelUpdateBound(spec, SEED), engine_of(LayerList(spec, seed=SEED))
    signal.start(engine, None, 0)
    squares = signal.collect(engine).sums.view(-1, 2, 2)
    _, beta = deepnorm_constants("decoder", 0, 3)
    assert squares[..., 0].sqrt().flatten().tolist() == pytest.approx([beta] * 12, rel=0.05)
    assert squares[..., 1].abs().max() == 0


@pytest.mark.parametrize(
    ("kind", "model"),
    [("pre_ln", {}), ("b2t", {}), ("keel", {}), ("rezero", {}), ("deepnorm", {"activation": "swiglu"})],
)
def test_absent_where_the_theorem_says_nothing(kind, model):
    _, spec = spec_of(kind, 0, **model)
    signal, engine = ModelUpdateBound(spec, SEED), engine_of(LayerList(spec, seed=SEED))
    assert signal.start(engine, None, 0) == ""
    assert signal.profiles(*signal.collect(engine)) == {}


def test_the_seed_gives_the_first_weights_again():
    _, spec = spec_of("post_ln", 2)
    layers = LayerList(spec, seed=SEED)
    shards = [shard for shard in halves(layers) if ".layers." in shard.name]
    for shard, weight in zip(shards, first_weights(spec, SEED, shards), strict=True):
        assert torch.equal(shard.weight, weight), shard.name


def test_other_first_weights_are_noticed():
    """A resumed session whose run began with weights that its seed does not give."""
    _, spec = spec_of("deepnorm", 0)
    given, resumed = ModelUpdateBound(spec, SEED), ModelUpdateBound(spec, SEED)
    engine = engine_of(LayerList(spec, seed=SEED + 1))
    given.start(engine, None, 0)
    resumed.load_state_dict(given.state_dict())
    assert "did not begin with its seed's weights" in resumed.start(engine, None, 4)
    assert math.isnan(resumed.profiles(*resumed.collect(engine))["model_update_bound"]["model"][0])
