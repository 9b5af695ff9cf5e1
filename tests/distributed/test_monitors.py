"""The signals of the parameters in every layout against a direct computation on the whole model, in fp64."""

from __future__ import annotations

import math

import pytest
import targets_engine as targets
import targets_equations as equations
import torch
from harness import Group, run_group

torch.set_num_threads(1)
LAYOUTS = {
    "one": (1, {}),
    "zero1_dp2": (2, {}),
    "zero0_dp2": (2, {"parallel.zero_stage": 0}),
    "zero2_dp2_rezero": (2, {"parallel.zero_stage": 2, "model.block": {"kind": "rezero"}}),
    "offload_zero2_dp2": (2, {"parallel.zero_stage": 2, "parallel.offload_optimizer": True}),
    "zero3_dp2_recomputed_qk_norm": (
        2,
        {"parallel.zero_stage": 3, "train.activation_checkpointing": 2, "model.qk_norm": True},
    ),
    "pp2": (2, {"parallel.pipeline_stages": 2}),
    "pp2_dp2_untied_pre_ln": (
        4,
        {"parallel.pipeline_stages": 2, "model.block": {"kind": "pre_ln"}, "model.tie_embeddings": False},
    ),
}
BRANCHES = ("self_attention", "cross_attention", "ffn")
OF_PARAMETERS = {"gradient_norm", "weight_norm", "update_norm", "update_ratio", "adam_rms"}
PLANTED = ("encoder.layers.1", "decoder.layers.0")
ROWS = ("encoder.layers.0", "token_embedding")


def changes_of(layout):
    return {"model.dropout": 0.0, "optimizer.clip_norm": 0.3, **LAYOUTS[layout][1]}


def rows_of(name):
    """All (group, row) in which a parameter counts: its layer and its part of the layer, or a row of its own."""
    if ".layers." not in name:
        return [(targets.row_of(name), 0)]
    stack, _, index, *own = name.split(".")
    by_role = [role for role in ("norm", "gain") if any(role in piece for piece in own)]
    return [(stack, int(index)), (f"{stack}.{by_role[0] + 's' if by_role else own[0]}", int(index))]


def profile(tensors, of=lambda squares, elements: math.sqrt(squares)):
    """{group: [of(sum of squares, elements) of row 0, 1, ...]} over all elements of a row's tensors."""
    sums = {}
    for name, tensor in tensors.items():
        for group, row in rows_of(name):
            squares, elements = sums.setdefault(group, {}).get(row, (0.0, 0))
            sums[group][row] = squares + float(tensor.square().sum()), elements + tensor.numel()
    return {group: [of(*rows[row]) for row in range(len(rows))] for group, rows in sums.items()}


def clipping(config, gradients):
    """The factor on all gradients."""
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))
    return min(1.0, config.optimizer.clip_norm / norm)


def expected_figures(config, ranks):
    """Figure -> profile, from the fp32 tensors that the shards hold."""
    before, after, gradients, exp_avg_sq = (
        targets.assembled([rank[which] for rank in ranks]) for which in ("before", "after", "gradients", "exp_avg_sq")
    )
    (updates,) = {rank["updates"] for rank in ranks}
    unbiased, eps = 1 - config.optimizer.betas[1] ** updates, config.optimizer.eps
    changes = {name: after[name] - weight for name, weight in before.items()}
    clipped = {name: clipping(config, gradients) * gradient for name, gradient in gradients.items()}
    steps = {name: g / (exp_avg_sq[name] / unbiased).sqrt().clamp(min=eps) for name, g in clipped.items()}
    weight_norm, update_norm = profile(before), profile(changes)
    return {
        "gradient_norm": profile(gradients),
        "weight_norm": weight_norm,
        "update_norm": update_norm,
        "update_ratio": {
            group: [
                update / weight if weight else math.nan for update, weight in zip(update_norm[group], rows, strict=True)
            ]
            for group, rows in weight_norm.items()
        },
        "adam_rms": profile(steps, lambda squares, elements: math.sqrt(squares / elements)),
    }


def gradients_by_hand(config, weights):
    """Autograd through the papers' equations in fp64: the mean loss over the whole second batch."""
    weights = {name: weight.requires_grad_() for name, weight in weights.items()}
    batch = targets.global_batch(1)
    logits, _ = equations.encoder_decoder(weights, config.model, batch)
    loss, count = equations.summed_loss(logits, batch["labels"])
    names, tensors = zip(*weights.items(), strict=True)
    found = torch.autograd.grad(loss / count, tensors, allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def close(found, expected, rel=1e-5):
    assert found.keys() == expected.keys()
    for group, values in expected.items():
        assert found[group] == pytest.approx(values, rel=rel, nan_ok=True), group


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """`sampled(layout)`: (experiment, what each rank found), run once when first asked for."""
    done = {}

    def get(layout):
        if layout not in done:
            changes, log = changes_of(layout), str(tmp_path_factory.mktemp("log"))
            ranks = run_group(targets.signals, LAYOUTS[layout][0], changes, log, targets.parameters)
            done[layout] = targets.experiment(changes), ranks
        return done[layout]

    return get


@pytest.mark.parametrize("layout", LAYOUTS)
class TestDirect:
    def test_every_figure_of_the_parameters(self, sampled, layout):
        """In every row; a tied embedding counts once, and the clipping that Adam's RMS takes out is a real one."""
        config, ranks = sampled(layout)
        expected = expected_figures(config, ranks)
        assert set(expected) == OF_PARAMETERS
        assert clipping(config, targets.assembled([rank["gradients"] for rank in ranks])) < 0.9
        for rank in ranks:
            for name, groups in expected.items():
                close(rank["profiles"][2][name], groups)

    def test_gradients_are_those_of_the_whole_model(self, sampled, layout):
        """1e-4: an fp32 gradient is a sum with more cancellation than its norm's reduction has."""
        config, ranks = sampled(layout)
        expected = profile(gradients_by_hand(config, targets.assembled([rank["before"] for rank in ranks])))
        for rank in ranks:
            close(rank["profiles"][2]["gradient_norm"], expected, rel=1e-4)

    def test_the_groups(self, sampled, layout):
        """Rows for all that has parameters, none for a head that has not. ReZero's encoder has not begun to learn."""
        kind = sampled(layout)[0].model.block.kind
        role = "gains" if kind == "rezero" else "norms"
        expected = {f"{stack}.{part}" for stack in ("encoder", "decoder") for part in (*BRANCHES, role)}
        expected.remove("encoder.cross_attention")
        expected |= {"token_embedding", "encoder.embeddings", "encoder", "decoder.embeddings", "decoder"}
        if kind == "pre_ln":
            expected |= {"output_projection", "encoder.final_norm", "decoder.final_norm"}
        for rank in sampled(layout)[1]:
            for name in OF_PARAMETERS:
                found = rank["profiles"][2][name]
                assert set(found) == expected
                if kind != "rezero":
                    assert min(value for values in found.values() for value in values) > 0, name

    def test_scalars(self, sampled, layout):
        """A learned number is shown as it is after the step, the gains of QK-norms by their largest."""
        config, ranks = sampled(layout)
        after, found = targets.assembled([rank["after"] for rank in ranks]), [rank["profiles"][2] for rank in ranks]
        expected = {}
        if config.model.block.kind == "rezero":
            expected["scalar_gain"] = lambda n: [float(after[f"{n[0]}.{n[1]}_gain.weight"])]
        if config.model.qk_norm:
            expected["qk_norm_gain_max"] = lambda n: [
                float(after[f"{n[0]}.{n[1]}.{which}_norm.weight"].abs().max()) for which in "qk"
            ]
        shown = {name for name in found[0] if name.startswith("scalar_") or "gain" in name}
        assert shown == set(expected)
        for profiles in found:
            for name, values in expected.items():
                for group, rows in profiles[name].items():
                    stack, sublayer = group.split(".")
                    direct = [max(values((f"{stack}.layers.{row}", sublayer))) for row in range(2)]
                    assert rows == direct, (name, group)

    def test_no_hook_stays(self, sampled, layout):
        assert {rank["hooks"] for rank in sampled(layout)[1]} == {0}


@pytest.fixture(scope="module")
def plants(tmp_path_factory):
    """`plants(layout)`: what each rank sees of planted changes."""
    done = {}

    def get(layout):
        if layout not in done:
            processes, changes = targets.LAYOUTS[layout]
            changes = {"model.dropout": 0.0, "optimizer.clip_norm": 0.3, **changes}
            log = str(tmp_path_factory.mktemp("log"))
            done[layout] = run_group(targets.planted, processes, changes, log, targets.parameters, PLANTED, ROWS)
        return done[layout]

    return get


def cells(groups):
    return {(group, row): value for group, values in groups.items() for row, value in enumerate(values)}


def belongs(group, row, planted):
    """Whether a cell is one of the planted row of the model: the whole layer's, or a part's."""
    owner, _, index = planted.partition(".layers.")
    parts = {f"{owner}.{part}" for part in (*BRANCHES, "norms")} if index else set()
    return row == int(index or 0) and group in {owner} | parts


@pytest.mark.parametrize("layout", targets.LAYOUTS)
@pytest.mark.parametrize("planted", ROWS)
def test_gradients_scaled_tenfold_move_their_rows_alone(plants, layout, planted):
    for rank in plants(layout):
        still, found = (cells(side["gradient_norm"]) for side in (rank["still"], rank["gradients"][planted]))
        assert still.keys() == found.keys()
        for (group, row), value in still.items():
            factor = 10 if belongs(group, row, planted) else 1
            assert found[group, row] == pytest.approx(factor * value, rel=1e-5), (group, row)


@pytest.mark.parametrize("layout", targets.LAYOUTS)
@pytest.mark.parametrize("planted", ROWS)
def test_an_update_of_one_row_is_seen_there_alone(plants, layout, planted):
    """w -> 10 w has the norm 9 ||w|| and is nine times the weights; from then on they are ten times as large."""
    norms = cells(profile(targets.assembled([rank["weights"] for rank in plants(layout)])))
    for rank in plants(layout):
        moving, moved = rank["moved"][planted]
        for (group, row), norm in norms.items():
            own = belongs(group, row, planted)
            assert moving["update_norm"][group][row] == pytest.approx(9 * norm if own else 0, rel=1e-5, abs=0)
            assert moving["update_ratio"][group][row] == pytest.approx(9 if own else 0, rel=1e-5, abs=0)
            assert moving["weight_norm"][group][row] == pytest.approx(norm, rel=1e-5)
            assert moved["weight_norm"][group][row] == pytest.approx(10 * norm if own else norm, rel=1e-5)


@pytest.mark.parametrize("layout", targets.LAYOUTS)
@pytest.mark.parametrize("planted", PLANTED)
def test_a_layer_scaled_tenfold_moves_its_norm_inputs_alone(plants, layout, planted):
    """alpha x + G(x) times ten enters the norms of that layer; LN takes the factor out again (but for eps)."""
    stack, index = planted.split(".layers.")
    for rank in plants(layout):
        for (group, row), value in cells(rank["still"]["norm_input_rms"]).items():
            factor = 10 if group.startswith(f"{stack}.") and row == int(index) else 1
            found = rank["scaled"][planted]["norm_input_rms"][group][row]
            assert found == pytest.approx(factor * value, rel=1e-3), (group, row)
        assert {value for values in rank["still"]["update_norm"].values() for value in values} == {0.0}


def test_a_head_that_is_a_stage_of_its_own(tmp_path):
    """A large vocabulary makes the head costlier than all layers; its tied matrix belongs to the first stage.

    The ranks must still do the same collectives: DeepSpeed reduces the gradient norm once a parameter group.
    """
    changes = {**changes_of("pp2"), "model.encoder_layers": 1, "model.decoder_layers": 1}
    changes |= {"model.hidden_size": 4, "model.ffn_size": 4, "data.pad_vocab_to": 400_000}
    config = targets.experiment(changes)
    *others, head = targets.model_spec(config).layers
    assert head.cost > 100 * sum(layer.cost for layer in others)
    ranks = Group(targets.signals, 2, changes, str(tmp_path), targets.parameters).results(timeout=40.0)
    for rank in ranks:
        close(rank["profiles"][2]["update_norm"], expected_figures(config, ranks)["update_norm"])
