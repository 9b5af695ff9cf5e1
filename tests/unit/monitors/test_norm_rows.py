"""Which rows norm_input_rms has for each design, and that none of them stands for a norm that does not exist."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pretrain.config.schema import ModelSection
from pretrain.models.decoder import decoder
from pretrain.models.layer_list import LayerList
from pretrain.monitors.norm_inputs import NormInputs

torch.set_num_threads(1)
LAYERS, LENGTH, VOCABULARY = 3, 6, 40
TWO = ("self_attention", "ffn")
ROWS = {
    "pre_ln": TWO,
    "deepnorm": TWO,
    "peri_ln": ("self_attention", "self_attention_out", "ffn", "ffn_out"),
    "keel": ("self_attention", "self_attention_out", "ffn", "ffn_out"),
    "parallel": ("input",),
    "sas": TWO,
    "sas_p": ("input",),
    "value_skipinit": TWO,
    "rezero": (),
}


def spec_of(kind, **block):
    sizes = {"decoder_layers": LAYERS, "hidden_size": 16, "num_heads": 2, "ffn_size": 24}
    return decoder(ModelSection(family="decoder", block={"kind": kind, **block}, **sizes), VOCABULARY, 0, LENGTH)


def measured(spec):
    """The signal over one forward pass, and RMS of what each layer of the stack receives."""
    layers, signal, received = LayerList(spec, seed=1).train(), NormInputs(spec), []
    with torch.no_grad():
        for name, parameter in layers.named_parameters():
            if "norm" not in name:
                parameter *= 3.0  # so that no two layers see the same by chance
    for name, module in layers.built_layers():
        if ".layers." in name:
            module.register_forward_pre_hook(
                lambda _, inputs: received.append(float(inputs[0].detach().square().mean().sqrt()))
            )
    engine = SimpleNamespace(layers=layers, optimizer_step_count=lambda: 0)
    signal.before_step(engine)
    ids = torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    layers((ids, torch.ones_like(ids), torch.arange(2)))
    values = signal.profiles(*signal.collect(engine))["norm_input_rms"]
    return values, received


@pytest.mark.parametrize("kind", ROWS)
def test_rows_of_a_design(kind):
    values, _ = measured(spec_of(kind))
    assert {name: len(rows) for name, rows in values.items()} == {f"decoder.{name}": LAYERS for name in ROWS[kind]}
    assert all(value > 0 for rows in values.values() for value in rows)


@pytest.mark.parametrize("kind", ["parallel", "sas_p"])
def test_a_shared_norms_row_is_what_the_block_receives(kind):
    values, received = measured(spec_of(kind))
    assert values["decoder.input"] == pytest.approx(received, rel=1e-5)
    assert len(set(received)) == LAYERS


@pytest.mark.parametrize(("kind", "row"), [("sas", "self_attention"), ("sas_p", "input")])
def test_without_norms_the_row_shows_what_would_have_entered(kind, row):
    values, received = measured(spec_of(kind, norm=False))
    assert set(values) == {f"decoder.{name}" for name in ROWS[kind]}
    assert values[f"decoder.{row}"] == pytest.approx(received, rel=1e-5)
    assert all(value > 0 for rows in values.values() for value in rows)
