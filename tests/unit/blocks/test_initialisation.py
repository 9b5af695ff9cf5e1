"""Initialisation by (seed, name): nothing else decides it, and nothing is left unset."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import pretrain.blocks  # noqa: F401
from pretrain.blocks.base import BlockPlace
from pretrain.blocks.deepnorm import DeepNormBlock, DeepNormConfig
from pretrain.blocks.embeddings import Table
from pretrain.blocks.init import initialise, named_generator
from pretrain.blocks.registry import BLOCKS

torch.set_num_threads(1)


def block(index=0, kind="deepnorm", stack="decoder", encoder_layers=4):
    config = next(config for config in BLOCKS.config_types() if config().kind == kind)()
    return BLOCKS.build(config, BlockPlace(stack, index, encoder_layers, 4, hidden_size=16, num_heads=2, ffn_size=24))


def values(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", BLOCKS.kinds())
@pytest.mark.parametrize(("stack", "encoder_layers"), [("encoder", 4), ("decoder", 4), ("decoder", 0)])
def test_every_parameter_is_set(kind, stack, encoder_layers):
    module = block(kind=kind, stack=stack, encoder_layers=encoder_layers)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(float("nan"))
    initialise(module, "x", seed=1)
    assert [name for name, parameter in module.named_parameters() if parameter.isnan().any()] == []


def test_build_order_does_not_matter():
    def build(order):
        made = {index: block(index) for index in order}
        for index in order:
            initialise(made[index], f"decoder.layers.{index}", seed=7)
        return {index: values(made[index]) for index in made}

    one, two = build([0, 1, 2, 3]), build([3, 1, 0, 2])
    assert all(same(one[index], two[index]) for index in one)


def test_differs_by_seed_and_by_every_name():
    modules = {}
    for seed, index in ((1, 0), (2, 0), (1, 1), (1, 10), (11, 0)):  # "1/1..." and "11/..." must not meet
        module = block(index)
        initialise(module, f"decoder.layers.{index}", seed)
        modules[seed, index] = module
    matrices = [
        (f"{key}.{name}", p.detach().flatten()[:256] / p.detach().std())
        for key, module in modules.items()
        for name, p in module.named_parameters()
        if p.ndim == 2
    ]
    stacked = torch.stack([values for _, values in matrices])
    correlation = (stacked @ stacked.T / 256).fill_diagonal_(0)
    # 50 matrices of 256 normal entries: the correlation of two has standard deviation 1/16.
    worst = int(correlation.abs().argmax())
    pair = matrices[worst // len(matrices)][0], matrices[worst % len(matrices)][0]
    assert float(correlation.abs().max()) < 5.5 / 16, pair


def test_prefix_matters_and_path_is_canonical():
    """The generator of a parameter is that of its full dotted name."""
    module = block(3)
    initialise(module, "decoder.layers.3", seed=5)
    expected = torch.empty(16, 16).normal_(
        0.0, (2 / 32) ** 0.5, generator=named_generator(5, "decoder.layers.3.cross_attention.q_proj.weight")
    )
    assert torch.equal(module.cross_attention.q_proj.weight, expected)


def test_global_generators_are_left_alone():
    torch.manual_seed(3)
    np.random.seed(3)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    initialise(block(), "decoder.layers.0", seed=1)
    initialise(Table(30, 16), "token_embedding", seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert (numpy_before == np.random.get_state()[1]).all()
    other = block()
    torch.manual_seed(99)
    initialise(other, "decoder.layers.0", seed=1)
    again = block()
    initialise(again, "decoder.layers.0", seed=1)
    assert same(values(other), values(again))


def test_table_is_normal_with_variance_one_over_d():
    table = Table(400, 64)
    initialise(table, "token_embedding", seed=1)
    assert float(table.weight.detach().std()) == pytest.approx(64**-0.5, rel=0.02)


def test_a_module_that_cannot_initialise_itself_is_refused():
    class Alien(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(DeepNormBlock(DeepNormConfig(), BlockPlace("encoder", 0, 1, 1, 8, 1, 8)))
            self.scale = nn.Linear(2, 2)

    with pytest.raises(TypeError, match=r"Linear at a\.b\.scale"):
        initialise(Alien(), "a.b", seed=1)


def test_seed_zero_and_large_seeds():
    draws = {
        seed: torch.rand(3, generator=named_generator(seed, "w")).tolist() for seed in (0, 1, 2**31, 2**63, 10**30)
    }
    assert len({tuple(draw) for draw in draws.values()}) == len(draws)
