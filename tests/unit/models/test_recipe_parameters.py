"""Parameters of every shipped recipe on the meta device: written-out formulas, and totals that papers state."""

from __future__ import annotations

import pytest
import torch

from pretrain.analysis.plan_model import total_parameters
from pretrain.config.load import RECIPES, load_experiment, recipe_names
from pretrain.models.layer_list import LayerList
from pretrain.models.registry import FAMILIES


def spec(recipe, vocab_size=None, source_length=None, target_length=None):
    experiment = load_experiment(recipe)
    length = experiment.data.sequence_length
    family = FAMILIES[experiment.model.family]
    source = (source_length or length) if "encoder" in experiment.model.family else 0
    target = (target_length or length) if "decoder" in experiment.model.family else 0
    return family(experiment.model, vocab_size or experiment.data.vocab_size, source, target)


def formula(recipe):
    """Embeddings, blocks, final norms and head of the sequential designs, term by term."""
    experiment = load_experiment(recipe)
    model, V, P = experiment.model, experiment.data.vocab_size, experiment.data.sequence_length
    d, f, bias = model.hidden_size, model.ffn_size, int(model.bias)
    norm = d if model.norm == "rms_norm" else 2 * d
    attention = 4 * (d * d + bias * d)
    ffn = 2 * d * f + bias * (f + d) + (d * f + bias * f if model.activation in ("swiglu", "geglu") else 0)
    total = V * d
    for stack, layers in (("encoder", model.encoder_layers), ("decoder", model.decoder_layers)):
        if not layers:
            continue
        crosses = stack == "decoder" and model.encoder_layers > 0
        total += (P * d if model.positions == "learned" else 0) + (norm if model.embedding_norm else 0)
        total += layers * ((2 if crosses else 1) * (attention + norm) + ffn + norm)
        total += norm if model.block.kind == "pre_ln" else 0
    if model.family == "encoder":
        total += d * d + d + norm + V
    return total


SEQUENTIAL = [
    name for name in recipe_names() if load_experiment(name).model.block.kind in ("pre_ln", "post_ln", "deepnorm")
]


@pytest.mark.parametrize("recipe", SEQUENTIAL)
def test_written_out(recipe):
    assert total_parameters(spec(recipe)) == formula(recipe)


def simplified(V, P, d, L, H, mlp, norms, gains):
    """SAS and SAS-P: two matrices of attention and the first W_V; biases on q and k, 3 H + `gains` gains a layer."""
    kernels = L * (2 * d * d + mlp) + d * d
    return V * d + P * d + kernels + L * (2 * d + 3 * H + gains + norms * d) + 2 + d


OTHERS = {
    # The fused product has 3 d + f rows and f biases; one norm, and one gain a head's element for q and k each.
    "parallel_gpt": (
        32768 * 768 + 1024 * 768 + 12 * ((3 * 768 + 3072) * 768 + 3072 + 768 * (768 + 3072) + 768 + 768 + 2 * 64) + 768,
        110_944_512,
    ),
    "sas_codeparrot": (simplified(32768, 128, 768, 18, 12, 2 * 768 * 3072, norms=2, gains=3), 132_079_040),
    "sas_p_codeparrot": (simplified(32768, 128, 768, 18, 12, 2 * 768 * 3072, norms=1, gains=2), 132_065_198),
    "crammed_bert_sas": (
        simplified(32768, 128, 768, 16, 12, 3 * 768 * 1536, norms=2, gains=3)
        + 768  # the embeddings' norm
        + (768 * 768 + 768 + 768 + 32768),  # BERT's head
        102_026_866,
    ),
}


def test_every_recipe_is_pinned():
    assert {*SEQUENTIAL, *OTHERS} == set(recipe_names())


@pytest.mark.parametrize("recipe", OTHERS)
def test_the_others_by_number(recipe):
    written_out, total = OTHERS[recipe]
    assert total_parameters(spec(recipe)) == written_out == total


def test_pre_ln_codeparrot():
    """The total that its head comment states: RMSNorm and no biases."""
    tables, kernels, norms = (32768 + 128) * 768, 18 * (4 * 768**2 + 2 * 768 * 3072), (2 * 18 + 1) * 768
    total = total_parameters(spec("pre_ln_codeparrot"))
    assert total == tables + kernels + norms == 152_694_528
    head = (RECIPES / "pre_ln_codeparrot.yaml").read_text()
    assert f"{total:,} parameters" in head


@pytest.mark.parametrize("recipe", recipe_names())
def test_the_count_by_layers_is_that_of_the_model_itself(recipe):
    with torch.device("meta"):
        model = LayerList(spec(recipe))
    assert sum(p.numel() for p in model.parameters()) == total_parameters(spec(recipe))


def test_gpt_2_small():
    """124,439,808: GPT2LMHeadModel at its defaults."""
    assert total_parameters(spec("gpt_base", vocab_size=50257)) == 124_439_808


def test_bert_base():
    """109,514,298: BertForMaskedLM at its defaults, whose segment table of 2 x 768 ours does not have."""
    assert total_parameters(spec("bert_base", vocab_size=30522)) + 2 * 768 == 109_514_298


@pytest.mark.parametrize(("narrow", "wide"), [("bamboo_gpt", "gpt_base"), ("bamboo_bert", "bert_base")])
def test_bamboo_keeps_the_matrices_of_the_blocks(narrow, wide):
    """48 x 384 and 12 x 768: 12 d^2 L each; only biases and gains, linear in width, differ."""
    assert matrices(narrow) == matrices(wide) == 12 * 768**2 * 12


def matrices(recipe):
    with torch.device("meta"):
        model = LayerList(spec(recipe))
    return sum(p.numel() for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2)


def test_deepnet_of_1000_layers():
    """The paper says 3.8B; its vocabulary for 100 languages is not stated: the blocks alone have 3.68B."""
    blocks = 500 * (4 * 512**2 + 2 * 512 * 2048) + 500 * (8 * 512**2 + 2 * 512 * 2048)
    assert matrices("deepnet_1000l") == blocks == 3_670_016_000
    assert total_parameters(spec("deepnet_1000l", vocab_size=128_000)) == pytest.approx(3.8e9, rel=0.02)


def test_deepnet_of_100_and_100_layers():
    """The paper says 3.2B; 250,000 pieces are usual for 100 languages."""
    assert total_parameters(spec("deepnet_100l", vocab_size=250_000)) == pytest.approx(3.2e9, rel=0.02)
