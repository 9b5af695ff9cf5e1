"""Positions and embeddings: sinusoids by their formula, rotations that see distances alone, shrunk gradients."""

from __future__ import annotations

import math

import pytest
import targets_equations as equations
import torch

from pretrain.blocks.embeddings import LearnedPositions, SinusoidalPositions, shrink_gradient
from pretrain.blocks.init import initialise
from pretrain.blocks.positions import rotary_table, rotate, sinusoids
from pretrain.config.schema import ModelSection
from pretrain.models.parts import Embeddings

torch.set_num_threads(1)


def test_sinusoids():
    """sin and cos of p / 10000^(2i/d); fp32 keeps 6e-8 of a number of size one."""
    table = sinusoids(700, 12)
    assert table.shape == (700, 12)
    assert table.dtype == torch.float32
    for position in (0, 1, 17, 699):
        for i in range(6):
            angle = position / 10000 ** (2 * i / 12)
            assert table[position, i].item() == pytest.approx(math.sin(angle), abs=1e-7)
            assert table[position, 6 + i].item() == pytest.approx(math.cos(angle), abs=1e-7)


@pytest.mark.parametrize("kind", [LearnedPositions, SinusoidalPositions])
def test_rows_by_length_and_by_index(kind):
    positions = kind(9, 4)
    initialise(positions, "positions", seed=1)
    table = positions.weight if kind is LearnedPositions else positions.table
    assert torch.equal(positions(5), table[:5])
    index = torch.tensor([[0, 1, 2, 0], [0, 0, 1, 8]])
    found = positions(index)
    assert found.shape == (2, 4, 4)
    assert all(torch.equal(found[b, t], table[index[b, t]]) for b in range(2) for t in range(4))


def test_sinusoids_are_no_parameters_and_not_saved():
    positions = SinusoidalPositions(9, 4)
    assert positions.state_dict() == {}
    assert list(positions.parameters()) == []


def heads(count=2, length=11, size=6):
    return torch.randn(2, count, length, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_rotation_by_complex_numbers():
    x = heads()
    for head in range(2):
        torch.testing.assert_close(rotate(x)[:, head], equations.rotated(x[:, head]), rtol=1e-12, atol=1e-12)


def test_rotation_keeps_lengths_and_position_zero():
    x = heads()
    torch.testing.assert_close(rotate(x).norm(dim=-1), x.norm(dim=-1), rtol=1e-12, atol=0)
    assert torch.equal(rotate(x)[..., 0, :], x[..., 0, :])
    assert (rotate(x)[..., 1, :] - x[..., 1, :]).abs().min() > 1e-6, "every pair turns"


def test_scores_depend_on_the_distance_alone():
    """The same two vectors at positions (i, j) and (i + 5, j + 5)."""
    q, k = (heads(1, 1)[..., :1, :].expand(2, 1, 11, 6) * factor for factor in (1.0, -0.7))
    k = k.roll(1, dims=-1)
    scores = rotate(q) @ rotate(k).transpose(-1, -2)
    for distance in range(-10, 11):
        diagonal = scores.diagonal(distance, dim1=-2, dim2=-1)
        torch.testing.assert_close(diagonal, diagonal[..., :1].expand_as(diagonal), rtol=1e-11, atol=1e-11)
    assert scores[0, 0, 0].std() > 1e-2, "and it does depend on it"
    assert (scores - scores.transpose(-1, -2)).abs().max() > 1e-2, "in both directions"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_rounds_the_table_only_at_its_end(dtype):
    """Angles of position 4000 are exact to fp64 before their sine is rounded to the dtype."""
    cos, sin = rotary_table(4001, 8, torch.device("cpu"), dtype)
    assert cos.dtype == sin.dtype == dtype
    angle = torch.tensor([4000 / 10000 ** (2 * i / 8) for i in (0, 1, 2, 3)] * 2, dtype=torch.float64)
    assert torch.equal(cos[4000], angle.cos().to(dtype))
    assert torch.equal(sin[4000], angle.sin().to(dtype))


@pytest.mark.parametrize("factor", [0.1, 0.5])
def test_shrunk_gradient(factor):
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    y = shrink_gradient(x, factor)
    torch.testing.assert_close(y, x, rtol=1e-15, atol=1e-15)
    weights = torch.arange(15, dtype=torch.float64).view(5, 3)
    (gradient,) = torch.autograd.grad((y * weights).sum(), x)
    torch.testing.assert_close(gradient, factor * weights, rtol=1e-15, atol=0)


def embeddings(segmented=False, **changes):
    module = Embeddings(ModelSection(hidden_size=8, num_heads=2, **changes), "decoder", 6, segmented)
    initialise(module, "decoder.embeddings", seed=2)
    return module.double()


IDS = torch.tensor([[3, 1, 4, 1, 5], [2, 6, 5, 3, 5]])
MASK = torch.tensor([[1, 1, 1, 2, 2], [1, 2, 2, 2, 0]])


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
@pytest.mark.parametrize("embedding_norm", [True, False])
@pytest.mark.parametrize("segmented", [True, False])
def test_embeddings(positions, embedding_norm, segmented):
    model = ModelSection(hidden_size=8, num_heads=2, positions=positions, embedding_norm=embedding_norm)
    module = embeddings(segmented, positions=positions, embedding_norm=embedding_norm)
    tokens = torch.randn(9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = {f"decoder.embeddings.{name}": value for name, value in module.named_parameters()}
    assert len(weights) == (positions == "learned") + 2 * embedding_norm
    expected = equations.embed(
        weights | {"token_embedding.weight": tokens}, model, "decoder", IDS, MASK if segmented else None
    )
    found = module(IDS, MASK, tokens, torch.arange(2))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_gradient_is_shrunk_on_its_way_to_the_tokens_and_nowhere_else():
    gradients = {}
    for factor in (1.0, 0.1):
        module = embeddings(embedding_gradient_shrink=factor)
        tokens = torch.randn(9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
        out = module(IDS, MASK, tokens, torch.arange(2))
        wanted = [tokens, *module.parameters()]
        gradients[factor] = torch.autograd.grad((out * torch.linspace(-1, 1, 80).view(2, 5, 8)).sum(), wanted)
    (tokens_1, *others_1), (tokens_2, *others_2) = gradients[1.0], gradients[0.1]
    assert tokens_1.abs().max() > 1e-2
    torch.testing.assert_close(tokens_2, 0.1 * tokens_1, rtol=1e-12, atol=1e-14)
    for a, b in zip(others_1, others_2, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
