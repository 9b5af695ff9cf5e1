"""How whole models are cut into stages: nothing dropped, every stage with a block, costs where they arise."""

from __future__ import annotations

import itertools
from functools import cache

import pytest

from pretrain.config.load import load_experiment
from pretrain.config.schema import ParallelSection
from pretrain.models.registry import FAMILIES
from pretrain.parallel.build import layer_costs, stage_table
from pretrain.parallel.partition import cuts_between

LENGTH = 32
SMALL = ["model.hidden_size=32", "model.num_heads=2", "model.ffn_size=64", "batch.micro_batch_size=4"]
PRE_LN = ["model.block.kind=pre_ln"]  # with final norms, one of them between the stacks


@cache
def model(*overrides, vocabulary=100):
    experiment = load_experiment("demo", [*SMALL, *overrides])
    return experiment, FAMILIES[experiment.model.family](experiment.model, vocabulary, LENGTH, LENGTH)


def cut(stages, *overrides, vocabulary=100, device="cpu"):
    """(experiment, model, stage table)"""
    experiment, spec = model(*overrides, vocabulary=vocabulary)
    experiment = experiment.model_copy(update={"parallel": ParallelSection(pipeline_stages=stages)})
    return experiment, spec, stage_table(experiment, spec, device)


def depths(encoder, decoder):
    family = "encoder_decoder" if encoder and decoder else "encoder" if encoder else "decoder"
    keys = [f"model.family={family}", f"model.encoder_layers={encoder}", f"model.decoder_layers={decoder}"]
    return keys if decoder else [*keys, "objective.kind=masked_lm"]


@pytest.mark.parametrize("vocabulary", [100, 200_000], ids=["small head", "head above all"])
@pytest.mark.parametrize("block", [[], PRE_LN], ids=["deepnorm", "pre_ln"])
@pytest.mark.parametrize(("encoder", "decoder"), [(37, 71), (1, 63), (70, 1), (0, 64), (67, 0), (5, 3), (2, 2), (1, 1)])
def test_no_layer_is_dropped_and_every_stage_has_a_block(encoder, decoder, block, vocabulary):
    most = min(64, encoder + decoder)
    every = block and vocabulary == 100  # else a few, among them one block a stage
    for stages in range(1, most + 1) if every else {1, 2, most // 2, most - 1, most} - {0}:
        _, spec, rows = cut(stages, *depths(encoder, decoder), *block, vocabulary=vocabulary)
        assert [row.stage for row in rows] == list(range(stages))
        held = [spec.layers[i].name for row in rows for i in range(row.start, row.stop)]
        assert held == [layer.name for layer in spec.layers], stages
        for row in rows:
            names = [layer.name for layer in spec.layers[row.start : row.stop]]
            assert any(".layers." in name for name in names), (stages, names)
            assert (row.first, row.last) == (names[0], names[-1])
        assert sum(row.cost_share for row in rows) == pytest.approx(1)


@pytest.mark.parametrize("stages", [2, 3, 7, 16, 64])
def test_the_slowest_stage_is_at_most_a_layer_above_the_average(stages):
    experiment, spec, rows = cut(stages, *depths(101, 163))
    costs = layer_costs(experiment, spec, "cpu")
    assert max(row.cost_share for row in rows) * sum(costs) <= (sum(costs) / stages + max(costs)) * 1.05


def test_decoder_layers_cost_more_so_the_decoders_stages_hold_fewer():
    _, _, rows = cut(4, *depths(60, 60))
    assert rows[0].stop - rows[0].start > rows[-1].stop - rows[-1].start
    experiment, spec, _ = cut(1, *depths(60, 60))
    for device in ("cpu", "cuda"):
        costs = dict(zip((layer.name for layer in spec.layers), layer_costs(experiment, spec, device), strict=True))
        assert costs["decoder.layers.3"] > 1.3 * costs["encoder.layers.3"]


def test_the_head_is_counted():
    """A vocabulary as dear as twenty layers takes their place on the last stage."""
    held = {}
    for vocabulary in (50, 5000):
        experiment, spec, rows = cut(2, *depths(0, 100), vocabulary=vocabulary, device="cuda")
        held[vocabulary] = rows[-1].stop - rows[-1].start
    costs = dict(zip((layer.name for layer in spec.layers), layer_costs(experiment, spec, "cuda"), strict=True))
    worth = costs["head"] / costs["decoder.layers.0"]
    assert worth > 10
    assert held[50] - held[5000] == pytest.approx(worth / 2, abs=1)  # the other half goes to the first stage


def test_the_embedding_is_counted():
    experiment, spec, _ = cut(1, *depths(2, 2))
    costs = dict(zip((layer.name for layer in spec.layers), layer_costs(experiment, spec, "cpu"), strict=True))
    assert costs["encoder.embeddings"] == costs["decoder.embeddings"] > 0.1 * costs["encoder.layers.0"]


@pytest.mark.parametrize("block", [[], PRE_LN], ids=["deepnorm", "pre_ln"])
def test_the_border_is_taken_where_it_costs_little(block):
    for encoder, decoder, stages, at_border in ((60, 37, 2, True), (60, 60, 2, False), (60, 37, 8, True)):
        _, spec, rows = cut(stages, *depths(encoder, decoder), *block, device="cuda")
        assert ("decoder.embeddings" in [row.first for row in rows]) == at_border, (encoder, decoder, stages)
        (border,) = spec.preferred_cuts
        assert spec.layers[border].name == "decoder.embeddings"


def test_where_cuts_may_fall():
    blocks = [False, True, True, False, False, True, False]
    assert cuts_between(blocks) == [2, 3]
    assert cuts_between(blocks, [4]) == [2, 4]
    assert cuts_between(blocks, [5]) == [2, 5]
    assert cuts_between(blocks, [1, 6]) == [2, 3], "no block would stand on one of their sides"
    assert cuts_between([True]) == []


def test_cuts_leave_a_block_on_each_side():
    for pattern in itertools.product([False, True], repeat=7):
        cuts = [0, *cuts_between(pattern, [3]), 7]
        if any(pattern):
            assert all(sum(pattern[a:b]) == 1 for a, b in itertools.pairwise(cuts)), (pattern, cuts)
