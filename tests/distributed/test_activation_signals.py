"""The signals of the activations in every layout against the whole model in one process, in fp64."""

from __future__ import annotations

import activations_by_hand as by_hand
import pytest
import targets_engine as targets
import targets_equations as equations
import torch
from harness import run_group

torch.set_num_threads(1)
PRE_LN = {"model.block": {"kind": "pre_ln"}, "model.tie_embeddings": False}
LAYOUTS = {
    "one": (1, {}),
    "zero1_dp2": (2, {}),
    "zero2_dp2_recomputed": (2, {"parallel.zero_stage": 2, "train.activation_checkpointing": 2}),
    "zero3_dp2_recomputed": (2, {"parallel.zero_stage": 3, "train.activation_checkpointing": 2}),
    "pp2": (2, {"parallel.pipeline_stages": 2}),
    "pp2_dp2_recomputed": (4, {"parallel.pipeline_stages": 2, "train.activation_checkpointing": 1, **PRE_LN}),
}
NORMS = {f"{stack}.{name}" for stack in ("encoder", "decoder") for name in ("self_attention", "ffn")}
NORMS |= {"decoder.cross_attention"}


def activations(config, spec):
    """Every signal of the activations."""
    from pretrain.monitors.attention import AttentionLogits
    from pretrain.monitors.effective_rank import EffectiveRank
    from pretrain.monitors.norm_gradients import NormGradients
    from pretrain.monitors.norm_inputs import NormInputs
    from pretrain.monitors.over_smoothing import OverSmoothing

    kinds = NormInputs, NormGradients, AttentionLogits, OverSmoothing, EffectiveRank
    return [kind(spec) for kind in kinds]


@pytest.fixture(scope="module", params=LAYOUTS)
def run(request, tmp_path_factory):
    """(experiment, what each rank found) of a layout whose two steps were both sampled."""
    processes, changes = LAYOUTS[request.param]
    changes = {"model.dropout": 0.0, **changes}
    log = str(tmp_path_factory.mktemp("log"))
    return targets.experiment(changes), run_group(targets.signals, processes, changes, log, activations, (1, 2))


def weights_of(ranks, when):
    return targets.assembled([rank[when] for rank in ranks])


def rms(config, weights, batch):
    """{group: [RMS of what enters the norm of layer 0, 1, ...]}"""
    _, entered = equations.encoder_decoder(weights, config.model, targets.global_batch(batch))
    return {group: [float(x.square().mean().sqrt()) for x in layers] for group, layers in entered.items()}


def close(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for group, rows in expected.items():
        assert len(found[group]) == len(rows)
        for value, row in zip(found[group], rows, strict=True):
            assert value == pytest.approx(row, **tolerance), group


def test_norm_inputs_and_their_growth(run):
    config, ranks = run
    first, second = rms(config, weights_of(ranks, "start"), 0), rms(config, weights_of(ranks, "before"), 1)
    assert set(first) == NORMS
    growth = {group: [b / a for a, b in zip(first[group], second[group], strict=True)] for group in first}
    ones = {group: [1.0] * len(rows) for group, rows in first.items()}
    for rank in ranks:
        profiles = rank["profiles"]
        close(profiles[1]["norm_input_rms"], first, rel=1e-5)
        close(profiles[2]["norm_input_rms"], second, rel=1e-5)
        close(profiles[1]["norm_input_growth"], ones, rel=1e-12)
        close(profiles[2]["norm_input_growth"], growth, rel=1e-5)


def test_norm_gradients(run):
    """Of the mean loss over the whole second batch, through the norm alone."""
    config, ranks = run
    weights = {name: weight.requires_grad_() for name, weight in weights_of(ranks, "before").items()}
    batch = targets.global_batch(1)
    logits, entered = equations.encoder_decoder(weights, config.model, batch)
    loss, count = equations.summed_loss(logits, batch["labels"])
    expected = {
        group: [float(g.square().mean().sqrt()) for g in torch.autograd.grad(loss / count, layers, retain_graph=True)]
        for group, layers in entered.items()
    }
    for rank in ranks:
        # Gradients are sums with more cancellation than activations have; 2e-6 was seen.
        close(rank["profiles"][2]["norm_input_gradient"], expected, rel=1e-5)


def test_the_probe(run):
    """Attention and outputs after the second step, over the probe's three samples: filler and padding left out."""
    from pretrain.models.layer_list import LayerList

    config, ranks = run
    spec, batch = targets.model_spec(config), targets.probe_batch()
    layers = LayerList(spec).eval()
    layers.load_state_dict(weights_of(ranks, "after"))
    watched = by_hand.Watched(layers.double(), spec.state(batch))
    for name, expected in watched.profiles(batch, by_hand.tokens(batch)).items():
        for rank in ranks:
            close(rank["profiles"][2][name], expected, rel=1e-5, abs=1e-6)  # a cosine may be near 0


def test_no_hook_stays(run):
    assert {rank["hooks"] for rank in run[1]} == {0}
