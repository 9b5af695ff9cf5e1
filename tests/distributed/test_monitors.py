"""The depth signals of every layout against a direct computation on the whole model, in fp64."""

from __future__ import annotations

import math

import pytest
import targets_engine as targets
import targets_equations as equations
import torch
from harness import Group, run_group

torch.set_num_threads(1)
WIDE = {"model.dropout": 0.0}
LAYOUTS = {
    "one": (1, WIDE),
    "zero1_dp2": (2, WIDE),
    "zero0_dp2": (2, {**WIDE, "parallel.zero_stage": 0}),
    "offload_zero2_dp2_recomputed": (
        2,
        {**WIDE, "parallel.zero_stage": 2, "train.activation_checkpointing": 2, "parallel.offload_optimizer": True},
    ),
    "zero3_dp2_recomputed": (2, {**WIDE, "parallel.zero_stage": 3, "train.activation_checkpointing": 2}),
    "pp2": (2, {**WIDE, "parallel.pipeline_stages": 2}),
    "pp2_pre_ln_recomputed": (
        2,
        {
            **WIDE,
            "parallel.pipeline_stages": 2,
            "train.activation_checkpointing": 1,
            "model.block": {"kind": "pre_ln"},
            "model.tie_embeddings": False,
        },
    ),
}
PLAIN = ("one", "pp2")
PLANTED = ("encoder.layers.1", "decoder.layers.0")
ROWS = ("encoder.layers.0", "token_embedding")


def assembled(per_rank):
    """{name: fp64 weights in their shape}"""
    shapes, parts = {}, {}
    for shards in per_rank:
        for name, shape, start, _, values in shards:
            shapes[name] = shape
            parts.setdefault(name, []).append((start, torch.from_numpy(values)))
    return {
        name: torch.cat([values for _, values in sorted(found, key=lambda part: part[0])]).double().view(shapes[name])
        for name, found in parts.items()
    }


def expected_rms(config, weights):
    """{group: [RMS of what enters the norm of layer 0, 1, ...]} over the whole second batch."""
    _, entered = equations.encoder_decoder(weights, config.model, targets.global_batch(1))
    return {group: [float(x.square().mean().sqrt()) for x in layers] for group, layers in entered.items()}


def expected_update(before, after):
    """{group: [norm of the change of layer 0, 1, ...]}"""
    squares = {}
    for name, weight in before.items():
        parts = targets.row_of(name).split(".layers.")
        group, row = parts[0], int(parts[1]) if len(parts) > 1 else 0
        rows = squares.setdefault(group, {})
        rows[row] = rows.get(row, 0.0) + float((after[name] - weight).square().sum())
    return {group: [math.sqrt(rows[row]) for row in range(len(rows))] for group, rows in squares.items()}


def close(found, expected, rel=1e-5):
    assert found.keys() == expected.keys()
    for group, values in expected.items():
        assert found[group] == pytest.approx(values, rel=rel), group


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """`sampled(layout)`: (experiment, what each rank found), run once when first asked for."""
    done = {}

    def get(layout):
        if layout not in done:
            processes, changes = LAYOUTS[layout]
            planted = PLANTED if layout in PLAIN else ()
            log = str(tmp_path_factory.mktemp("log"))
            done[layout] = (
                targets.experiment(changes),
                run_group(targets.signals, processes, changes, log, planted, ROWS),
            )
        return done[layout]

    return get


@pytest.mark.parametrize("layout", LAYOUTS)
class TestDirect:
    def test_norm_inputs(self, sampled, layout):
        """Recomputed forwards are not counted, nor is the first, unsampled step."""
        config, ranks = sampled(layout)
        weights = assembled([rank["before"] for rank in ranks])
        for rank in ranks:
            close(rank["rows"]["norm_input_rms"], expected_rms(config, weights))

    def test_update_norm(self, sampled, layout):
        """From the fp32 masters; rows for all that has parameters (a tied embedding once), none for the head."""
        config, ranks = sampled(layout)
        before, after = (assembled([rank[when] for rank in ranks]) for when in ("before", "after"))
        groups = {"token_embedding", "encoder.embeddings", "encoder", "decoder.embeddings", "decoder"}
        if config.model.block.kind == "pre_ln":
            groups |= {"output_projection", "encoder.final_norm", "decoder.final_norm"}
        for rank in ranks:
            found = rank["rows"]["update_norm"]
            assert set(found) == groups
            assert min(value for values in found.values() for value in values) > 0
            close(found, expected_update(before, after))

    def test_no_hook_stays(self, sampled, layout):
        assert [rank["hooks"] for rank in sampled(layout)[1]] == [0] * LAYOUTS[layout][0]

    @pytest.mark.parametrize("row", ROWS)
    def test_an_update_of_one_row_is_seen_there_alone(self, sampled, layout, row):
        _, ranks = sampled(layout)
        weights = assembled([rank["after"] for rank in ranks])
        norm = math.sqrt(sum(float(w.square().sum()) for name, w in weights.items() if targets.row_of(name) == row))
        group, _, index = row.partition(".layers.")
        for rank in ranks:
            moved = {(g, i): v for g, values in rank["moved"][row].items() for i, v in enumerate(values) if v}
            assert moved == {(group, int(index or 0)): pytest.approx(9 * norm, rel=1e-5)}


@pytest.mark.parametrize("layout", PLAIN)
@pytest.mark.parametrize("planted", PLANTED)
def test_a_layer_scaled_tenfold_moves_its_rows_alone(sampled, layout, planted):
    """alpha x + G(x) times ten enters the norms of that layer; LN takes the factor out again (but for eps)."""
    stack, index = planted.split(".layers.")
    for rank in sampled(layout)[1]:
        for group, values in rank["still"]["norm_input_rms"].items():
            for row, value in enumerate(values):
                factor = 10 if group.startswith(f"{stack}.") and row == int(index) else 1
                found = rank["planted"][planted]["norm_input_rms"][group][row]
                assert found == pytest.approx(factor * value, rel=1e-3), (group, row)
        assert {value for values in rank["still"]["update_norm"].values() for value in values} == {0.0}


def test_a_head_that_is_a_stage_of_its_own(tmp_path):
    """A large vocabulary makes the head costlier than all layers; its tied matrix belongs to the first stage.

    The ranks must still do the same collectives: DeepSpeed reduces the gradient norm once a parameter group.
    """
    changes = {**WIDE, "parallel.pipeline_stages": 2, "model.encoder_layers": 1, "model.decoder_layers": 1}
    changes |= {"model.hidden_size": 4, "model.ffn_size": 4, "data.pad_vocab_to": 400_000}
    config = targets.experiment(changes)
    *others, head = targets.model_spec(config).layers
    assert head.cost > 100 * sum(layer.cost for layer in others)
    ranks = Group(targets.signals, 2, changes, str(tmp_path)).results(timeout=40.0)
    before, after = (assembled([rank[when] for rank in ranks]) for when in ("before", "after"))
    for rank in ranks:
        close(rank["rows"]["norm_input_rms"], expected_rms(config, before))
        close(rank["rows"]["update_norm"], expected_update(before, after))
