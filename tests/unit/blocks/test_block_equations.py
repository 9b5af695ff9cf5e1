"""Every sequential design against its paper's equation in fp64: values and gradients."""

from __future__ import annotations

import pytest
import torch
from targets_blocks import KEY, SOURCE, built, check, memory, padding, place

from pretrain.blocks.base import Streams
from pretrain.blocks.deepnorm_sqrt import DeepNormSqrtBlock
from pretrain.blocks.keel import KeelBlock
from pretrain.blocks.registry import BLOCKS
from pretrain.blocks.sequential import SequentialBlock

torch.set_num_threads(1)
KINDS = (
    "b2t",
    "deepnorm",
    "deepnorm_sqrt",
    "keel",
    "lns",
    "peri_ln",
    "post_ln",
    "post_ln_init",
    "pre_ln",
    "rezero",
    "sub_ln",
)
OVER_AN_ENCODER = tuple(kind for kind in KINDS if kind not in ("deepnorm_sqrt", "keel"))


def test_no_sequential_design_is_left_out():
    sequential = {kind for kind in BLOCKS.kinds() if issubclass(BLOCKS[kind], SequentialBlock)}
    assert sequential == set(KINDS)
    assert set(KINDS) - set(OVER_AN_ENCODER) == {
        kind for kind in KINDS if "encoder_decoder" not in BLOCKS[kind].families
    }


@pytest.mark.parametrize("kind", KINDS)
class TestOneStack:
    def test_encoder(self, kind):
        check(kind, place("encoder", decoder_layers=0))

    def test_encoder_with_padding(self, kind):
        check(kind, place("encoder", decoder_layers=0), Streams(KEY, mask=padding([7, 4, 1], SOURCE)))

    def test_decoder(self, kind):
        where = place("decoder", encoder_layers=0)
        assert not any("cross" in name for name, _ in built(kind, where).named_parameters())
        check(kind, where)

    @pytest.mark.parametrize("index", [0, 2])
    def test_first_and_last_layer(self, kind, index):
        check(kind, place("decoder", encoder_layers=0, index=index))


@pytest.mark.parametrize("kind", OVER_AN_ENCODER)
class TestEncoderDecoder:
    def test_encoder(self, kind):
        check(kind, place("encoder"))

    def test_encoder_with_padding(self, kind):
        check(kind, place("encoder"), Streams(KEY, mask=padding([7, 4, 1], SOURCE)))

    def test_decoder(self, kind):
        check(kind, place("decoder"), Streams(KEY, memory=memory()))

    def test_decoder_over_a_padded_source(self, kind):
        check(kind, place("decoder"), Streams(KEY, memory=memory(), memory_mask=padding([2, 7, 5], SOURCE)))


def test_only_designs_with_an_open_residual_end_their_stacks_with_a_norm():
    assert {kind for kind in KINDS if BLOCKS[kind].final_norm} == {"pre_ln", "sub_ln", "peri_ln", "lns"}


def test_the_references_tell_the_designs_apart():
    """With the same weights no two designs agree, or a wrong equation could pass for another."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, SOURCE, 12, generator=generator, dtype=torch.float64)
    where, outputs = place("encoder", decoder_layers=0), {}
    weights = dict(built("peri_ln", where).named_parameters()) | dict(built("sub_ln", where).named_parameters())
    weights |= {"self_attention_gain.weight": torch.tensor([0.4]), "ffn_gain.weight": torch.tensor([-0.7])}
    for kind in KINDS:
        module = built(kind, where)
        module.load_state_dict({name: weights[name] for name in module.state_dict()})
        outputs[kind] = module(x, Streams(KEY))
    names = list(outputs)
    for i, a in enumerate(names):
        for b in names[:i]:
            same = {a, b} == {"post_ln", "post_ln_init"}  # they differ in their start alone
            assert torch.equal(outputs[a], outputs[b]) == same, (a, b)


@pytest.mark.parametrize("block", [DeepNormSqrtBlock, KeelBlock])
def test_designs_of_one_stack(block):
    assert block.families == {"decoder", "encoder"}
