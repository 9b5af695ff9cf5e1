"""Whole models of the three families against their written-out equations: logits and gradients in fp64."""

from __future__ import annotations

import pytest
import targets_equations as equations
import torch
from targets_models import PREFIXES, SOURCE_DOCUMENTS, TARGET_DOCUMENTS, batch, logits, section, spec, whole

torch.set_num_threads(1)
ONE_STACK = ("decoder", "encoder")
DESIGNS = ("deepnorm", "post_ln", "pre_ln", "lns", "sub_ln")
DOCUMENTS = {"decoder": TARGET_DOCUMENTS, "encoder": SOURCE_DOCUMENTS, "encoder_decoder": SOURCE_DOCUMENTS}


def check(config, data, segmented=False):
    model = whole(config, segmented)
    weights = dict(model.named_parameters())
    found = logits(model, config, data, segmented)
    expected, _ = equations.network(weights, config, data, segmented)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad((found * direction).sum(), list(weights.values()))
    reference = torch.autograd.grad((expected * direction).sum(), list(weights.values()))
    for name, a, b in zip(weights, gradients, reference, strict=True):
        assert float((a - b).abs().max()) <= 1e-10 * max(1.0, float(b.abs().max())), name
    return model


@pytest.mark.parametrize("kind", DESIGNS)
class TestFamilies:
    @pytest.mark.parametrize("family", ONE_STACK)
    @pytest.mark.parametrize("tied", [True, False])
    def test_one_stack(self, kind, family, tied):
        model = check(section(family, kind, tie_embeddings=tied, activation="gelu"), batch(family))
        assert ("output_projection.weight" in model.state_dict()) != tied
        assert (f"{family}.final_norm.weight" in model.state_dict()) == (kind in equations.FINAL_NORM)

    @pytest.mark.parametrize("family", [*ONE_STACK, "encoder_decoder"])
    def test_documents(self, kind, family):
        check(section(family, kind), batch(family, DOCUMENTS[family]), segmented=True)

    def test_prefixes(self, kind):
        check(section("decoder", kind), batch("decoder", PREFIXES), segmented=True)


@pytest.mark.parametrize("family", [*ONE_STACK, "encoder_decoder"])
class TestOptions:
    @pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
    @pytest.mark.parametrize("segmented", [True, False])
    def test_positions(self, family, positions, segmented):
        config = section(family, "pre_ln", positions=positions)
        model = check(config, batch(family, DOCUMENTS[family] if segmented else None), segmented)
        assert not any("positions" in name for name in model.state_dict())

    @pytest.mark.parametrize(
        "changes",
        [
            {"norm": "rms_norm", "norm_eps": 1e-3},
            {"bias": False, "embedding_norm": False},
            {"qk_norm": True, "activation": "swiglu"},
            {"activation": "geglu", "norm": "rms_norm", "bias": False, "positions": "rotary", "qk_norm": True},
        ],
    )
    def test_options(self, family, changes):
        check(section(family, "pre_ln", **changes), batch(family))
        check(section(family, "deepnorm", **changes), batch(family))


def test_berts_head_keeps_its_biases_and_its_activation():
    """model.bias speaks of the blocks; a gated network's head has the activation of its gate."""
    model = whole(section("encoder", "pre_ln", bias=False, activation="swiglu"))
    head = {name for name in model.state_dict() if name.startswith("head.")}
    assert head == {"head.dense.weight", "head.dense.bias", "head.norm.weight", "head.norm.bias", "head.bias"}
    assert not [n for n in model.state_dict() if "proj.bias" in n or "fc1.bias" in n]


@pytest.mark.parametrize("family", ONE_STACK)
def test_rotary_documents_need_no_positions_of_their_own(family):
    """A document packed behind another one has the logits it has alone."""
    config = section(family, "pre_ln", positions="rotary")
    model, data = whole(config, segmented=True), batch(family, DOCUMENTS[family])
    together = logits(model, config, data, segmented=True)
    start, stop = (2, 3) if family == "decoder" else (3, 5)
    alone = {
        "input_ids": data["input_ids"][:1, start:stop],
        "attention_mask": torch.ones(1, stop - start, dtype=torch.int64),
        "sample_key": data["sample_key"][:1],
    }
    found = logits(model, config, alone, segmented=True)
    torch.testing.assert_close(found, together[:1, start:stop], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("family", [*ONE_STACK, "encoder_decoder"])
def test_learned_positions_count_anew_in_packed_documents(family):
    """So a packed document has the logits it has alone, which plain rows by place would not give."""
    config = section(family, "deepnorm")
    model, data = whole(config, segmented=True), batch(family, DOCUMENTS[family])
    together = logits(model, config, data, segmented=True)
    first = data["attention_mask"][:1] == 2
    alone = {
        "input_ids": data["input_ids"][:1][first][None],
        "attention_mask": torch.ones(1, int(first.sum()), dtype=torch.int64),
        "sample_key": data["sample_key"][:1],
    }
    where = first
    if family == "encoder_decoder":
        where = data["decoder_attention_mask"][:1] == 2
        alone["decoder_input_ids"] = data["decoder_input_ids"][:1][where][None]
        alone["decoder_attention_mask"] = torch.ones(1, int(where.sum()), dtype=torch.int64)
    found = logits(model, config, alone, segmented=True)
    torch.testing.assert_close(found[0], together[:1][where], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("family", [*ONE_STACK, "encoder_decoder"])
def test_canonical_names(family):
    names = set(whole(section(family, "pre_ln", qk_norm=True, activation="swiglu")).state_dict())
    stacks = [stack for stack in ("encoder", "decoder") if stack in family]
    for stack in stacks:
        layer = f"{stack}.layers.1"
        assert f"{stack}.embeddings.positions.weight" in names
        assert f"{stack}.embeddings.norm.bias" in names
        assert f"{stack}.final_norm.weight" in names
        assert f"{layer}.self_attention.q_norm.weight" in names
        assert f"{layer}.ffn.gate.weight" in names
        assert (f"{layer}.cross_attention.k_norm.weight" in names) == (stack == "decoder" and len(stacks) == 2)
    heads = {"head"} if family == "encoder" else set()
    assert {name.split(".")[0] for name in names} == {"token_embedding", *stacks} | heads
    assert len(spec(section(family, "pre_ln")).inputs) == (4 if family == "encoder_decoder" else 3)


@pytest.mark.parametrize("family", [*ONE_STACK, "encoder_decoder"])
def test_a_stated_standard_deviation_holds_everywhere(family):
    """init_std: N(0, 0.02^2) on all matrices and tables; 400 entries or more, so 15% are 4 of their own deviations."""
    sizes = {"hidden_size": 48, "ffn_size": 64, "num_heads": 3}
    model = whole(section(family, "pre_ln", init_std=0.02, tie_embeddings=False, **sizes), stirred=False)
    weights = {name: p.detach() for name, p in model.named_parameters() if p.ndim == 2}
    assert {"token_embedding.weight", "output_projection.weight"} <= weights.keys()
    assert any("positions" in name for name in weights)
    assert ("head.dense.weight" in weights) == (family == "encoder")
    for name, weight in weights.items():
        assert weight.numel() > 300, name
        assert float(weight.std()) == pytest.approx(0.02, rel=0.16), name
