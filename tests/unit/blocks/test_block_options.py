"""The options that every design takes, against the written-out equations: values and gradients in fp64."""

from __future__ import annotations

import itertools

import pytest
import targets_equations as equations
import torch
from targets_blocks import KEY, SOURCE, TARGET, built, check, memory, padding, place

from pretrain.blocks.base import Streams
from pretrain.blocks.masks import segment_mask

torch.set_num_threads(1)
DESIGNS = ("deepnorm", "pre_ln", "sub_ln")  # a norm behind, a norm before, norms inside the branches
OPTIONS = {
    "rms_norm": {"norm": "rms_norm"},
    "eps": {"norm_eps": 1e-2},
    "no bias": {"bias": False},
    "qk_norm": {"qk_norm": True},
    "rotary": {"rotary": True},
    "qk_norm and rotary": {"qk_norm": True, "rotary": True, "norm": "rms_norm"},
    "everything": {"norm": "rms_norm", "bias": False, "qk_norm": True, "rotary": True, "activation": "swiglu"},
}


@pytest.mark.parametrize("kind", DESIGNS)
class TestOptions:
    @pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu", "swiglu", "geglu"])
    def test_activations(self, kind, activation):
        where = place("encoder", activation=activation)
        gated = activation in ("swiglu", "geglu")
        assert ("ffn.gate.weight" in dict(built(kind, where).named_parameters())) == gated
        check(kind, where)

    @pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS.keys())
    def test_in_every_place(self, kind, changes):
        check(kind, place("encoder", **changes), Streams(KEY, mask=padding([7, 4, 1], SOURCE)))
        check(kind, place("decoder", encoder_layers=0, **changes))
        check(kind, place("decoder", **changes), Streams(KEY, memory=memory()))

    def test_packed_documents(self, kind):
        mask = torch.tensor([[1, 1, 2, 2, 2, 0], [1, 2, 3, 3, 0, 0], [1, 1, 1, 1, 1, 1]])
        visible = segment_mask(mask, mask, causal=True)
        check(kind, place("decoder", encoder_layers=0), Streams(KEY, mask=visible))
        source = torch.tensor([[1, 1, 1, 2, 2, 0, 0], [1, 1, 2, 2, 3, 3, 3], [1, 1, 1, 0, 0, 0, 0]])
        check(kind, place("encoder"), Streams(KEY, mask=segment_mask(source, source, causal=False)))
        streams = Streams(KEY, visible, memory(), segment_mask(mask, source, causal=False))
        check(kind, place("decoder"), streams)

    def test_prefixes(self, kind):
        mask = torch.tensor([[-1, -1, 1, -2, 2, 2], [-1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
        check(kind, place("decoder", encoder_layers=0), Streams(KEY, mask=segment_mask(mask, mask, causal=True)))


def test_qk_norm_has_one_gain_for_all_heads_over_the_width_of_one():
    weights = dict(built("pre_ln", place("decoder", qk_norm=True)).named_parameters())
    assert weights["self_attention.q_norm.weight"].shape == (4,)
    assert weights["cross_attention.k_norm.weight"].shape == (4,)
    assert not any("cross_attention.q_norm" in n for n in dict(built("pre_ln", place("encoder")).named_parameters()))


def test_no_bias_leaves_the_norms_theirs():
    names = [name for name, _ in built("sub_ln", place("decoder", bias=False)).named_parameters()]
    assert {name.split(".")[-2] for name in names if name.endswith("bias")} == {
        "self_attention_norm",
        "cross_attention_norm",
        "ffn_norm",
        "out_norm",
        "inner_norm",
    }
    assert not [
        n for n in dict(built("sub_ln", place("decoder", bias=False, norm="rms_norm")).state_dict()) if "bias" in n
    ]


def test_rotary_turns_self_attention_alone():
    """Shuffling the memory, with its mask, changes nothing; shuffling the text does."""
    module = built("pre_ln", place("decoder", rotary=True))
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    x = torch.randn(3, TARGET, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    seen = padding([5, 7, 6], SOURCE)
    before = module(x, Streams(KEY, memory=memory(), memory_mask=seen))
    after = module(x, Streams(KEY, memory=memory()[:, order], memory_mask=seen[..., order]))
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)
    encoder = built("pre_ln", place("encoder", decoder_layers=0, rotary=True))
    y = memory()
    assert (encoder(y[:, order], Streams(KEY)) - encoder(y, Streams(KEY))[:, order]).abs().max() > 1e-3


@pytest.mark.parametrize(("norm", "bias"), itertools.product(["layer_norm", "rms_norm"], [True, False]))
def test_the_reference_norms(norm, bias):
    """The references themselves, on numbers worked out by hand: mean 2, variance 2, mean square 6."""
    x = torch.tensor([0.0, 2.0, 4.0, 2.0], dtype=torch.float64)
    weights = {"n.weight": torch.tensor([1.0, 1, 2, 1], dtype=torch.float64)}
    if norm == "layer_norm":
        weights["n.bias"] = torch.full((4,), 3.0 if bias else 0.0, dtype=torch.float64)
        expected = torch.tensor([-1.0, 0, 2, 0], dtype=torch.float64) * 2**0.5 + (3 if bias else 0)
    else:
        expected = torch.tensor([0.0, 2, 8, 2], dtype=torch.float64) / 6**0.5
    torch.testing.assert_close(equations.normalise(weights, "n", norm, x, eps=0.0), expected)
