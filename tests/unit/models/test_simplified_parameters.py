"""Published totals of the simplified blocks (2311.01906), by formula and by counting on the meta device."""

from __future__ import annotations

import pytest
import torch

from pretrain.config.schema import ModelSection
from pretrain.models.registry import FAMILIES

WIDTH = 768


def counted(model, vocab_size, length):
    """{canonical name: elements} of the whole model; a tied table once."""
    lengths = (0, length) if model.family == "decoder" else (length, 0)
    spec = FAMILIES[model.family](model, vocab_size, *lengths)
    with torch.device("meta"):
        parts = {layer.name: layer.factory() for layer in spec.layers} | {k: f() for k, f in spec.shared.items()}
    return {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}


def gpt(kind, block=None, **changes):
    """18 x 768 with 12 heads, vocabulary 50,000, positions 1024: those of the authors' GPT-2 configuration."""
    sizes = {"decoder_layers": 18, "hidden_size": WIDTH, "num_heads": 12, "ffn_size": 3072, "embedding_norm": False}
    model = ModelSection(family="decoder", block={"kind": kind, **(block or {})}, **(sizes | changes))
    return counted(model, 50_000, 1024)


def elements(parameters, *parts):
    return sum(p.numel() for name, p in parameters.items() if not parts or any(part in name for part in parts))


def kernels(parameters):
    return sum(p.numel() for name, p in parameters.items() if ".layers." in name and p.ndim == 2)


def test_gpt_with_pre_ln():
    """166.65M: 18 (4 d^2 + 2 d m) in kernels, tables, norms; layer_norm's biases are as many as theirs on q and k."""
    parameters = gpt("pre_ln", bias=False)
    assert kernels(parameters) == 18 * (4 * WIDTH**2 + 2 * WIDTH * 3072) == 127_401_984
    assert elements(parameters, "token_embedding", "positions") == 50_000 * WIDTH + 1024 * WIDTH == 39_186_432
    assert elements(parameters, "norm") == (18 * 2 + 1) * 2 * WIDTH
    assert elements(parameters) == 166_645_248


@pytest.mark.parametrize(("kind", "norms", "gains"), [("sas", 2, 3), ("sas_p", 1, 2)])
@pytest.mark.parametrize("norm", [True, False])
def test_gpt_simplified(kind, norms, gains, norm):
    """146.00M: 18 (2 d^2 + 2 d m) and the first W_V in kernels; biases on q and k; 3 H + `gains` gains a layer."""
    parameters = gpt(kind, norm="rms_norm", block={"norm": norm})
    assert kernels(parameters) == 18 * (2 * WIDTH**2 + 2 * WIDTH * 3072) + WIDTH**2 == 106_758_144
    left = (18 * norms if norm else 1) * WIDTH + WIDTH
    assert elements(parameters, "norm") == left
    assert elements(parameters, "bias") == 18 * 2 * WIDTH
    assert elements(parameters) == 106_758_144 + 39_186_432 + 18 * 2 * WIDTH + left + 18 * (3 * 12 + gains) + 2
    assert f"{elements(parameters) / 1e6:.1f}" == "146.0"
    if kind == "sas" and norm:
        assert elements(parameters) == 146_001_344


def test_gpt_value_skipinit_keeps_all_matrices():
    assert kernels(gpt("value_skipinit")) == kernels(gpt("pre_ln"))


@pytest.mark.parametrize(("kind", "total"), [("pre_ln", 119_537_664), ("sas", 101_253_120), ("sas_p", 101_253_120)])
def test_crammed_bert(kind, total):
    """Kernels and the tied table of 32,768 pieces: 119.5M and 101.25M. Its GELU-GLU of 3072 is a gate and a value
    of 1536 each, here ffn_size = 1536; positions, norms and a prediction head are not in those totals."""
    sizes = {"encoder_layers": 16, "hidden_size": WIDTH, "num_heads": 12, "ffn_size": 1536, "activation": "geglu"}
    parameters = counted(ModelSection(family="encoder", block={"kind": kind}, **sizes), 32_768, 128)
    attention = 16 * 4 * WIDTH**2 if kind == "pre_ln" else 16 * 2 * WIDTH**2 + WIDTH**2
    assert kernels(parameters) == attention + 16 * 3 * WIDTH * 1536
    assert kernels(parameters) + elements(parameters, "token_embedding") == total
