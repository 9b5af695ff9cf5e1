"""Every block against its paper's equation in fp64: values and gradients."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import targets_equations as equations
import torch

import pretrain.blocks  # noqa: F401
from pretrain.blocks.base import BlockPlace, Streams
from pretrain.blocks.init import initialise
from pretrain.blocks.registry import BLOCKS

torch.set_num_threads(1)
N, M, WIDTH, HEADS, BATCH, SOURCE, TARGET = 5, 3, 12, 3, 3, 7, 6
KINDS = ("deepnorm", "post_ln", "pre_ln")


def place(stack, encoder_layers=N, decoder_layers=M, **changes):
    return BlockPlace(stack, 1, encoder_layers, decoder_layers, WIDTH, HEADS, 20, **changes)


def built(kind, where):
    """A block in fp64 with no parameter at its special starting value (gains one, biases zero)."""
    module = BLOCKS[kind](SimpleNamespace(kind=kind), where)
    initialise(module, where.name, seed=3)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return module.double()


def check(kind, where, streams):
    """Output and gradients of the block and of the equation agree to 1e-10 of their own size."""
    module = built(kind, where)
    generator = torch.Generator().manual_seed(4)
    length = TARGET if where.causal else SOURCE
    x = torch.randn(BATCH, length, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
    inputs = [x]
    if streams.memory is not None:
        inputs.append(streams.memory.requires_grad_())
    parameters = dict(module.named_parameters())
    output = module(x, streams)
    alpha, eps = equations.residual_constants(kind, where.stack, where.encoder_layers, where.decoder_layers)

    def flat(mask):
        return None if mask is None else mask[:, 0, 0, :]

    expected, _ = equations.block(
        parameters,
        kind,
        x,
        heads=HEADS,
        activation=where.activation,
        alpha=alpha,
        eps=eps,
        causal=where.causal,
        source=flat(streams.mask),
        memory=streams.memory,
        memory_mask=flat(streams.memory_mask),
    )
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    wanted = [*inputs, *parameters.values()]
    found = torch.autograd.grad((output * weights).sum(), wanted)
    reference = torch.autograd.grad((expected * weights).sum(), wanted)
    names = ["x", "memory"][: len(inputs)] + list(parameters)
    for name, a, b in zip(names, found, reference, strict=True):
        assert (a - b).abs().max() <= 1e-10 * max(1.0, float(b.abs().max())), name
        # Softmax does not see a shift of all keys: only that gradient may vanish.
        assert "k_proj.bias" in name or float(b.abs().max()) > 1e-6, f"{name}: no gradient, so nothing was compared"


def padding(lengths, size):
    """bool [B, 1, 1, S]"""
    return (torch.arange(size)[None, :] < torch.tensor(lengths)[:, None])[:, None, None, :]


def memory():
    return torch.randn(BATCH, SOURCE, WIDTH, generator=torch.Generator().manual_seed(6), dtype=torch.float64)


KEY = torch.arange(BATCH)


@pytest.mark.parametrize("kind", KINDS)
class TestEquations:
    def test_encoder(self, kind):
        check(kind, place("encoder"), Streams(KEY))

    def test_encoder_with_padding(self, kind):
        check(kind, place("encoder"), Streams(KEY, mask=padding([7, 4, 1], SOURCE)))

    def test_decoder_over_an_encoder(self, kind):
        check(kind, place("decoder"), Streams(KEY, memory=memory()))

    def test_decoder_over_a_padded_source(self, kind):
        check(kind, place("decoder"), Streams(KEY, memory=memory(), memory_mask=padding([2, 7, 5], SOURCE)))

    def test_decoder_alone(self, kind):
        where = place("decoder", encoder_layers=0)
        assert not any("cross" in name for name, _ in built(kind, where).named_parameters())
        check(kind, where, Streams(KEY))

    def test_encoder_alone(self, kind):
        check(kind, place("encoder", decoder_layers=0), Streams(KEY, mask=padding([7, 5, 2], SOURCE)))

    @pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
    def test_activations(self, kind, activation):
        check(kind, place("encoder", activation=activation), Streams(KEY))


def test_only_pre_ln_ends_its_stacks_with_a_norm():
    assert {kind: BLOCKS[kind].final_norm for kind in KINDS} == {"deepnorm": False, "post_ln": False, "pre_ln": True}
