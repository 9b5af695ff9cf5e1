"""A block and its written-out equation side by side: outputs and gradients in fp64."""

from __future__ import annotations

from types import SimpleNamespace

import targets_equations as equations
import torch

import pretrain.blocks  # noqa: F401
from pretrain.blocks.base import BlockPlace, Streams
from pretrain.blocks.init import initialise
from pretrain.blocks.registry import BLOCKS

N, M, WIDTH, HEADS, BATCH, SOURCE, TARGET = 5, 3, 12, 3, 3, 7, 6
KEY = torch.arange(BATCH)
TOLERANCE = 1e-10  # of values of size one; fp64 leaves about 1e-14 in sums of a few hundred terms


def place(stack, encoder_layers=N, decoder_layers=M, index=1, **changes):
    values = {"hidden_size": WIDTH, "num_heads": HEADS, "ffn_size": 20} | changes
    return BlockPlace(stack, index, encoder_layers, decoder_layers, **values)


def stir(module, size=0.3):
    """Move every parameter off its special starting value (gains one or zero, biases zero); fp64."""
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return module.double()


def built(kind, where):
    module = BLOCKS[kind](SimpleNamespace(kind=kind), where)
    initialise(module, where.name, seed=3)
    return stir(module)


def setting(kind, where):
    alpha = equations.residual_alpha(kind, where.stack, where.encoder_layers, where.decoder_layers)
    return equations.Setting(
        where.num_heads,
        where.index + 1,
        where.depth,
        alpha,
        where.activation,
        where.norm,
        where.norm_eps,
        where.rotary,
    )


def padding(lengths, size):
    """bool [B, 1, 1, S]"""
    return (torch.arange(size)[None, :] < torch.tensor(lengths)[:, None])[:, None, None, :]


def memory(width=WIDTH):
    return torch.randn(BATCH, SOURCE, width, generator=torch.Generator().manual_seed(6), dtype=torch.float64)


def no_gradient_expected(name, where):
    """Softmax does not see a shift of all keys; a norm or a rotation behind the shift makes it more than that."""
    return name.endswith("k_proj.bias") and not (where.qk_norm or (where.rotary and name.startswith("self")))


def check(kind, where, streams=None):
    """Outputs and all gradients of the block and of the equation agree to TOLERANCE of their own size."""
    streams = streams or Streams(KEY)
    module = built(kind, where)
    generator = torch.Generator().manual_seed(4)
    length = TARGET if where.causal else SOURCE
    x = torch.randn(BATCH, length, where.hidden_size, generator=generator, dtype=torch.float64, requires_grad=True)
    inputs = {"x": x} if streams.memory is None else {"x": x, "memory": streams.memory.requires_grad_()}
    parameters = dict(module.named_parameters())
    output = module(x, streams)
    assert output.shape == x.shape
    visible = torch.ones(1, length, length, dtype=torch.bool)
    if streams.mask is not None:
        visible = visible & streams.mask[:, 0]
    elif where.causal:
        visible = visible.tril()
    seen = torch.ones(1, 1, SOURCE, dtype=torch.bool) if streams.memory_mask is None else streams.memory_mask[:, 0]
    expected, _ = equations.block(parameters, kind, x, setting(kind, where), visible, streams.memory, seen)
    torch.testing.assert_close(output, expected, rtol=TOLERANCE, atol=TOLERANCE)

    weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    wanted = inputs | parameters
    found = torch.autograd.grad((output * weights).sum(), list(wanted.values()))
    reference = torch.autograd.grad((expected * weights).sum(), list(wanted.values()))
    for name, a, b in zip(wanted, found, reference, strict=True):
        assert (a - b).abs().max() <= TOLERANCE * max(1.0, float(b.abs().max())), name
        assert no_gradient_expected(name, where) or float(b.abs().max()) > 1e-6, (
            f"{name}: no gradient, so nothing was compared"
        )
