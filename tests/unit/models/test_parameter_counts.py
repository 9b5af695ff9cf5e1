"""Parameters by formula, on the meta device: what each design adds to or leaves out of Post-LN."""

from __future__ import annotations

import pytest
import torch

from pretrain.config.schema import ModelSection
from pretrain.models.layer_list import LayerList
from pretrain.models.registry import FAMILIES

D, F, V, T = 48, 100, 700, 30
SINGLE = {  # norms a layer, each of 2 d; what comes on top a layer; norms at the end of the stack
    "b2t": (2, 0, 0),
    "deepnorm": (2, 0, 0),
    "deepnorm_sqrt": (2, 0, 0),
    "keel": (4, 0, 0),
    "lns": (2, 0, 1),
    "peri_ln": (4, 0, 1),
    "post_ln": (2, 0, 0),
    "post_ln_init": (2, 0, 0),
    "pre_ln": (2, 0, 1),
    "rezero": (0, 2, 0),
    "sub_ln": (3, 2 * F, 1),
}


def count(family, layers, kind, **changes):
    sizes = {f"{family}_layers": layers, "hidden_size": D, "num_heads": 4, "ffn_size": F}
    config = ModelSection(family=family, block={"kind": kind}, **{**sizes, **changes})
    with torch.device("meta"):
        model = LayerList(FAMILIES[family](config, V, *((0, T) if family == "decoder" else (T, 0))))
    assert all(p.is_meta for p in model.parameters())
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", SINGLE)
@pytest.mark.parametrize("family", ["decoder", "encoder"])
def test_designs(kind, family):
    norms, more, final = SINGLE[kind]
    layers = 5
    block = 4 * (D * D + D) + 2 * D * F + D + F + norms * 2 * D + more
    expected = layers * block + (V + T) * D + (1 + final) * 2 * D
    if kind == "keel":  # Pre-LN in the first layer
        expected -= 2 * 2 * D
    if family == "encoder":  # BERT's head
        expected += D * D + D + 2 * D + V
    assert count(family, layers, kind) == expected


def test_options():
    base = count("decoder", 5, "pre_ln")
    assert count("decoder", 5, "pre_ln", activation="swiglu") - base == 5 * (D * F + F)
    assert count("decoder", 5, "pre_ln", bias=False) - base == -5 * (4 * D + D + F)
    assert count("decoder", 5, "pre_ln", norm="rms_norm") - base == -(5 * 2 + 2) * D
    assert count("decoder", 5, "pre_ln", qk_norm=True) - base == 5 * 2 * (D // 4)
    assert count("decoder", 5, "pre_ln", positions="rotary") - base == -T * D
    assert count("decoder", 5, "pre_ln", positions="sinusoidal") - base == -T * D
    assert count("decoder", 5, "pre_ln", tie_embeddings=False) - base == V * D
    assert count("decoder", 5, "pre_ln", embedding_norm=False) - base == -2 * D


def test_a_thousand_layers_deep_decoder():
    """GPT's 12 d^2 and 13 d a layer, at F = 4 d."""
    expected = 1000 * (12 * D * D + 13 * D) + (V + T) * D + 2 * 2 * D
    assert count("decoder", 1000, "pre_ln", ffn_size=4 * D) == expected
