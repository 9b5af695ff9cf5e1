"""The stage partition against brute force, and at depth."""

from __future__ import annotations

import itertools
import random

import pytest

from pretrain.config.schema import ModelSection
from pretrain.models.encoder_decoder import encoder_decoder
from pretrain.parallel.partition import BORDER_TOLERANCE, stage_bounds


def bottleneck(costs, bounds):
    return max(sum(costs[a:b]) for a, b in itertools.pairwise(bounds))


def brute_force(costs, stages, cut=None):
    """The least bottleneck over all partitions (through `cut`, if one is given); None if there is none."""
    cuts = itertools.combinations(range(1, len(costs)), stages - 1)
    values = [bottleneck(costs, [0, *c, len(costs)]) for c in cuts if cut is None or cut in c]
    return min(values, default=None)


def valid(bounds, layers, stages):
    return (
        len(bounds) == stages + 1
        and (bounds[0], bounds[-1]) == (0, layers)
        and all(a < b for a, b in itertools.pairwise(bounds))
    )


KINDS = {
    "whole": lambda draw: float(draw.randint(1, 9)),
    "with zeros": lambda draw: float(draw.choice([0, 0, 1, 5])),
    "real": lambda draw: draw.random(),
    "wide": lambda draw: 10 ** draw.uniform(-3, 12),
    "equal": lambda draw: 3.0,
}


@pytest.mark.parametrize("kind", KINDS)
def test_optimal(kind):
    draw = random.Random(kind)
    for _ in range(150):
        costs = [KINDS[kind](draw) for _ in range(draw.randint(1, 9))]
        stages = draw.randint(1, len(costs))
        bounds = stage_bounds(costs, stages)
        assert valid(bounds, len(costs), stages), (costs, stages, bounds)
        assert bottleneck(costs, bounds) <= brute_force(costs, stages) * (1 + 1e-9), (costs, stages, bounds)


@pytest.mark.parametrize("kind", KINDS)
def test_preferred_cut_exactly_within_the_tolerance(kind):
    draw = random.Random(f"{kind} cut")
    taken = 0
    for _ in range(250):
        costs = [KINDS[kind](draw) for _ in range(draw.randint(2, 8))]
        stages = draw.randint(2, len(costs))
        cut = draw.randint(1, len(costs) - 1)
        bounds = stage_bounds(costs, stages, [cut])
        assert valid(bounds, len(costs), stages), (costs, stages, cut, bounds)
        best, through = brute_force(costs, stages), brute_force(costs, stages, cut)
        limit = best * (1 + BORDER_TOLERANCE)
        assert bottleneck(costs, bounds) <= limit * (1 + 1e-9), (costs, stages, cut, bounds)
        if through is not None and through <= limit * (1 - 1e-9):
            assert cut in bounds, (costs, stages, cut, bounds)
            assert bottleneck(costs, bounds) <= through * (1 + 1e-9)
            taken += 1
    assert taken > 20


def test_the_first_affordable_cut_wins():
    assert stage_bounds([1.0] * 8, 2, [2, 4]) == [0, 4, 8]
    assert stage_bounds([1.0] * 100, 2, [48, 51]) == [0, 48, 100]
    assert stage_bounds([1.0] * 100, 2, [40]) == [0, 50, 100]


def test_cuts_at_the_ends_are_no_cuts():
    for cut in (0, 8, 9):
        assert valid(stage_bounds([1.0] * 8, 2, [cut]), 8, 2)


@pytest.mark.parametrize("stages", [*range(1, 65)])
def test_a_thousand_layers(stages):
    """500 + 500 layers of unequal stacks, embeddings of no cost, a head."""
    costs = [0.0, *([1.0] * 500), 0.0, *([1.7] * 500), 3.1]
    bounds = stage_bounds(costs, stages, [501])
    assert valid(bounds, len(costs), stages)
    assert sorted(layer for a, b in itertools.pairwise(bounds) for layer in range(a, b)) == list(range(len(costs)))
    ideal = max(sum(costs) / stages, max(costs))
    assert bottleneck(costs, bounds) <= (ideal + 1.7) * (1 + BORDER_TOLERANCE)


def test_the_model_is_cut_at_the_border_where_it_is_cheap():
    """Equal stacks over equal lengths: cross-attention makes decoder layers dearer, so 2 stages cut elsewhere;
    with the decoder shorter by that much, they cut at the border."""
    config = ModelSection(encoder_layers=48, decoder_layers=48, hidden_size=64, num_heads=2, ffn_size=128)
    for target_length, at_border in ((128, False), (72, True)):
        spec = encoder_decoder(config, 100, 128, target_length)
        costs = [layer.cost for layer in spec.layers]
        bounds = stage_bounds(costs, 2, spec.preferred_cuts)
        border = next(i for i, layer in enumerate(spec.layers) if layer.name == "decoder.embeddings")
        assert spec.preferred_cuts == (border,)
        assert (border in bounds) == at_border, [sum(costs[:border]), sum(costs[border:])]


def test_as_many_stages_as_layers():
    assert stage_bounds([0.0, 5.0, 0.0, 2.0], 4) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("layers", "stages"), [(3, 4), (0, 1), (3, 0)])
def test_impossible(layers, stages):
    with pytest.raises(ValueError, match="stages"):
        stage_bounds([1.0] * layers, stages)
