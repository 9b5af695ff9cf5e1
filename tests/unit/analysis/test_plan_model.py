"""FLOPs as torch counts them; MFU."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pretrain.analysis.plan_model import (
    Sizes,
    forward_flops_per_token,
    model_flops_utilisation,
    training_flops_per_token,
)
from pretrain.blocks.registry import BLOCKS
from pretrain.config.load import load_experiment
from pretrain.models.layer_list import LayerList
from pretrain.models.registry import FAMILIES

ROWS = 3
NARROW = ["model.hidden_size=32", "model.num_heads=2", "model.ffn_size=48"]
MODELS = {
    "encoder_decoder": ("demo", ["model.encoder_layers=2", "model.decoder_layers=3"], Sizes(16, 12, 100)),
    "decoder": ("gpt_base", ["model.decoder_layers=3"], Sizes(0, 12, 100)),
    "gated": ("gpt_base", ["model.decoder_layers=2", "model.activation=swiglu"], Sizes(0, 12, 100)),
    "encoder": ("bert_base", ["model.encoder_layers=2"], Sizes(16, 0, 100)),
}
# SAS takes running means by a small matrix product, which is left out.
DECODER_BLOCKS = [kind for kind in BLOCKS.kinds() if "decoder" in BLOCKS[kind].families and not kind.startswith("sas")]
CASES = [
    *itertools.product(["decoder"], DECODER_BLOCKS),
    *itertools.product(["encoder_decoder"], ["deepnorm", "pre_ln", "sub_ln"]),
    *itertools.product(["encoder"], ["post_ln", "parallel"]),
    ("gated", "pre_ln"),
]


@pytest.mark.parametrize(("model", "kind"), CASES)
def test_flops_are_those_that_torch_counts(model, kind):
    recipe, overrides, sizes = MODELS[model]
    experiment = load_experiment(recipe, [*NARROW, *overrides, f"model.block.kind={kind}"])
    spec = FAMILIES[experiment.model.family](experiment.model, sizes.vocabulary, sizes.source, sizes.target)
    lengths = {
        key: sizes.target if key.startswith("decoder") or not sizes.source else sizes.source for key in spec.inputs
    }
    # On the meta device attention is two plain matrix products, so that all of it is counted.
    with torch.device("meta"):
        layers = LayerList(spec)
        batch = {key: torch.ones(ROWS, lengths[key], dtype=torch.long) for key in spec.inputs}
        state = spec.state(batch | {"sample_key": torch.ones(ROWS, dtype=torch.long)})
        with FlopCounterMode(display=False) as forward:
            logits = layers(state)[0]
        with FlopCounterMode(display=False) as backward:
            logits.sum().backward()
    tokens = ROWS * sizes.tokens
    assert forward_flops_per_token(spec, sizes) * tokens == forward.get_total_flops()
    assert training_flops_per_token(spec, sizes) * tokens == forward.get_total_flops() + backward.get_total_flops()


def test_mfu_of_a_known_run():
    # PaLM 540B (arXiv 2204.02311, table 3): 238.3K tokens/s on 6144 TPU v4 of 275 TFLOP/s are 46.2% by
    # 6 N + 12 L H Q T with 118 layers, 48 heads of 256 and 2048 tokens.
    flops = 6 * 540.35e9 + 12 * 118 * 48 * 256 * 2048
    assert model_flops_utilisation(238.3e3, flops, 6144, 275e12) == pytest.approx(0.462, abs=0.001)
