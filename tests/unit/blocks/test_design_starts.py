"""How each design starts: the gain of every matrix, the scale of every norm, what is the identity."""

from __future__ import annotations

import math

import pytest
import torch
from targets_blocks import place

from pretrain.blocks.base import Streams
from pretrain.blocks.deepnorm_sqrt import DeepNormSqrtBlock
from pretrain.blocks.gain import Gain
from pretrain.blocks.init import initialise
from pretrain.blocks.registry import BLOCKS
from pretrain.blocks.sub_ln import sub_ln_gain
from pretrain.config.checks import check
from pretrain.config.load import load_experiment
from pretrain.config.schema import ModelSection
from pretrain.errors import ConfigError
from pretrain.models.parameters import parameter_roles

torch.set_num_threads(1)
WIDE = {"hidden_size": 96, "num_heads": 4, "ffn_size": 160}
KEYS = ("q_proj.weight", "k_proj.weight")


def start(kind, where):
    module = BLOCKS[kind](BLOCKS.config(kind)(), where)
    initialise(module, where.name, seed=11)
    return module


def assert_gains(module, gain, key_gain, init_std=None):
    """Standard deviations of all matrices. 9,216 entries or more: their own error is below 0.8%, 3% is 4 of those."""
    for name, weight in module.state_dict().items():
        if weight.ndim == 2:
            fan_out, fan_in = weight.shape
            base = math.sqrt(2 / (fan_in + fan_out)) if init_std is None else init_std
            expected = base * (key_gain if name.endswith(KEYS) else gain)
            assert float(weight.std()) == pytest.approx(expected, rel=0.03), name
            assert abs(float(weight.mean())) < 4 * expected / math.sqrt(weight.numel()), name
        else:
            is_gain = name.endswith("norm.weight")
            assert (weight == (1 if is_gain else 0)).all(), name


ONE_STACK = {"encoder": (9, 0), "decoder": (0, 9)}


@pytest.mark.parametrize("kind", ["post_ln", "pre_ln", "b2t", "peri_ln", "lns", "rezero", "keel"])
@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_plain_xavier(kind, activation):
    assert_gains(start(kind, place("decoder", 0, 9, index=2, activation=activation, **WIDE)), 1, 1)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@pytest.mark.parametrize("index", [0, 4, 8])
def test_post_ln_init_divides_by_the_layers_above(stack, index):
    """Layer l = index + 1 of 9: Xavier / (9 - l + 1); the top layer is plain."""
    k = 9 - (index + 1) + 1
    assert_gains(start("post_ln_init", place(stack, *ONE_STACK[stack], index=index, **WIDE)), 1 / k, 1 / k)


def test_post_ln_init_counts_in_its_own_stack():
    assert_gains(start("post_ln_init", place("encoder", 6, 20, index=4, **WIDE)), 1 / 2, 1 / 2)
    assert_gains(start("post_ln_init", place("decoder", 20, 6, index=2, **WIDE)), 1 / 4, 1 / 4)
    stated = start("post_ln_init", place("decoder", 20, 6, index=2, init_std=0.02, **WIDE))
    assert_gains(stated, 1 / 4, 1 / 4, init_std=0.02)


@pytest.mark.parametrize(("stack", "N", "M"), [("encoder", 70, 0), ("decoder", 0, 70), ("decoder", 0, 1)])
def test_deepnorm_sqrt(stack, N, M):
    """alpha beta = 1, and 2 N beta / alpha = 1: under Adam the model's update has a bound that depth leaves alone."""
    where = place(stack, N, M, index=0, **WIDE)
    module = start("deepnorm_sqrt", where)
    depth = N or M
    alpha, beta = DeepNormSqrtBlock.constants(where)
    assert (alpha, beta) == pytest.approx((math.sqrt(2 * depth), 1 / math.sqrt(2 * depth)), rel=1e-15)
    assert 2 * depth * beta / alpha == pytest.approx(1, rel=1e-12)
    assert module.alpha == alpha
    assert_gains(module, beta, 1)
    assert module.ffn_norm.eps == pytest.approx(alpha**2 * 1e-5, rel=1e-12)


@pytest.mark.parametrize(
    ("stack", "N", "M", "squared"),
    [
        ("encoder", 24, 0, math.log(48)),
        ("decoder", 0, 24, math.log(48)),
        ("encoder", 24, 7, math.log(21) * math.log(48) / 3),
        ("decoder", 24, 7, math.log(21)),
    ],
)
@pytest.mark.parametrize("activation", ["gelu", "geglu"])
def test_sub_ln(stack, N, M, squared, activation):
    where = place(stack, N, M, activation=activation, **WIDE)
    assert sub_ln_gain(stack, N, M) == pytest.approx(math.sqrt(squared), rel=1e-12)
    module = start("sub_ln", where)
    assert_gains(module, math.sqrt(squared), 1)
    inner = {name for name, _ in module.named_parameters() if "out_norm" in name or "inner_norm" in name}
    attentions = ["self_attention"] + ["cross_attention"] * where.cross_attention
    owners = [f"{attention}.out_norm" for attention in attentions] + ["ffn.inner_norm"]
    assert inner == {f"{owner}.{part}" for owner in owners for part in ("weight", "bias")}
    assert module.ffn.inner_norm.weight.shape == (160,)


@pytest.mark.parametrize("kind", ["pre_ln", "post_ln", "rezero", "b2t", "peri_ln", "lns", "keel"])
def test_a_stated_standard_deviation(kind):
    module = start(kind, place("encoder", 9, 0, init_std=0.02, **WIDE))
    assert_gains(module, 1, 1, init_std=0.02)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_lns_scales_the_norms_by_the_layers_number(stack):
    """What enters the FFN is its norm's output over sqrt(l): exact where that is a power of two."""
    for index, scale in ((0, 1.0), (3, 0.5), (15, 0.25)):
        module = start("lns", place(stack, 16, 16, index=index))
        assert module.scale == scale
        x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))
        seen = []
        module.ffn.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        module.ffn_norm.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output))
        module(x, Streams(torch.arange(2), memory=x if stack == "decoder" else None))
        normalised, entered = seen
        assert torch.equal(entered, scale * normalised)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_rezero_starts_as_the_identity_and_leaves_it(stack):
    module = start("rezero", place(stack, 4, 4))
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))
    streams = Streams(torch.arange(2), memory=x.flip(1) if stack == "decoder" else None)
    assert torch.equal(module(x, streams), x)
    gains = {name: p for name, p in module.named_parameters() if "gain" in name}
    assert len(gains) == (3 if stack == "decoder" else 2)
    weights = torch.linspace(-1, 1, x.numel()).view_as(x)
    gradients = torch.autograd.grad((module(x, streams) * weights).sum(), list(gains.values()))
    assert min(float(gradient.abs()) for gradient in gradients) > 1e-3, "the gains' own gradients are not zero"
    with torch.no_grad():
        for gain in gains.values():
            gain += 0.1
    assert (module(x, streams) - x).abs().amax(-1).min() > 1e-4


def test_rezero_has_no_norm_and_its_gains_do_not_decay():
    roles = parameter_roles(start("rezero", place("decoder")))
    assert set(roles.values()) == {"weights", "biases", "gains"}
    assert {name for name, role in roles.items() if role == "gains"} == {
        f"{sublayer}_gain.weight" for sublayer in ("self_attention", "cross_attention", "ffn")
    }
    assert Gain(0.5).weight.shape == (1,)


def test_keel_weighs_all_layers_but_the_first():
    """alpha is the number of sublayers, and what lies in front of the first layer's branches is left as it is."""
    first, second = (start("keel", place("decoder", 0, 9, index=index)) for index in (0, 1))
    assert (first.alpha, second.alpha) == (1, 18)
    assert not [name for name, _ in first.named_parameters() if "out_norm" in name]
    assert len([name for name, _ in second.named_parameters() if "out_norm" in name]) == 4


@pytest.mark.parametrize(
    ("kind", "gain"), [("deepnorm", " times beta"), ("deepnorm_sqrt", " times beta"), ("sub_ln", ", grown with depth")]
)
def test_gains_of_xavier_do_not_go_with_a_stated_standard_deviation(kind, gain):
    model = ModelSection(family="decoder", block={"kind": kind}, init_std=0.02)
    assert BLOCKS[kind].objection(model.block, model) == (
        f"model.init_std = 0.02 does not go with model.block.kind = {kind}, whose gains are Xavier's{gain}; "
        "set model.init_std=null"
    )
    assert BLOCKS[kind].objection(model.block, model.model_copy(update={"init_std": None})) is None
    assert BLOCKS["post_ln_init"].objection(None, model) is None


@pytest.mark.parametrize("family", ["decoder", "encoder"])
def test_keel_of_one_layer_would_have_no_norm_at_its_end(family):
    key = f"{family}_layers"
    model = ModelSection(family=family, block={"kind": "keel"}, **{key: 1})
    assert BLOCKS["keel"].objection(model.block, model) == (
        f"model.{key} = 1 is too few for model.block.kind = keel, whose first layer is Pre-LN and leaves its output to "
        f"the next one's norms; set model.{key} to 2 or more"
    )
    assert BLOCKS["keel"].objection(model.block, model.model_copy(update={key: 2})) is None


@pytest.mark.parametrize("kind", ["deepnorm_sqrt", "keel"])
def test_designs_of_one_stack_refuse_two(kind):
    with pytest.raises(ConfigError) as caught:
        check(load_experiment("demo", [f"model.block.kind={kind}"]), 2, "cpu")
    assert str(caught.value) == (
        f"model.block.kind = {kind} has no meaning in model.family = encoder_decoder; set model.family to decoder or "
        "encoder, or another model.block.kind"
    )
