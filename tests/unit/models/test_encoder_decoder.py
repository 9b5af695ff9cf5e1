"""The encoder-decoder: canonical names, equations, pieces, recomputation, and that nothing is dropped or leaks."""

from __future__ import annotations

import itertools

import pytest
import targets_equations as equations
import torch

from pretrain.config.schema import ModelSection
from pretrain.models.encoder_decoder import encoder_decoder
from pretrain.models.layer_list import LayerList
from pretrain.models.parameters import parameter_roles, row_group

torch.set_num_threads(1)
N, M, V, S, T, B = 3, 2, 40, 9, 7, 4
KINDS = ("deepnorm", "post_ln", "pre_ln")


def section(kind="deepnorm", **changes):
    values = {"encoder_layers": N, "decoder_layers": M, "hidden_size": 16, "num_heads": 2, "ffn_size": 24}
    return ModelSection(block={"kind": kind}, **{**values, **changes})


def spec_of(config):
    return encoder_decoder(config, V, S, T)


def whole(config, seed=5, checkpoint_every=0):
    return LayerList(spec_of(config), seed=seed, checkpoint_every=checkpoint_every)


def batch(dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([9, 6, 3, 8])
    return {
        "input_ids": torch.randint(4, V, (B, S), generator=generator),
        "attention_mask": (torch.arange(S)[None] < lengths[:, None]).long(),
        "decoder_input_ids": torch.randint(4, V, (B, T), generator=generator),
        "labels": torch.randint(4, V, (B, T), generator=generator),
        "sample_key": torch.arange(100, 100 + B),
    }


def logits(model, data=None):
    (out,) = model(model_state(data or batch()))
    return out


def model_state(data):
    return spec_of(section()).state(data)


def expected_names(kind="deepnorm", tied=True, embedding_norm=True):
    def linear(name):
        return [f"{name}.weight", f"{name}.bias"]

    names = ["token_embedding.weight"] + ([] if tied else ["output_projection.weight"])
    for stack, depth in (("encoder", N), ("decoder", M)):
        names.append(f"{stack}.embeddings.positions.weight")
        if embedding_norm:
            names += linear(f"{stack}.embeddings.norm")
        for i in range(depth):
            layer = f"{stack}.layers.{i}"
            attentions = ["self_attention"] + (["cross_attention"] if stack == "decoder" else [])
            for attention in attentions:
                for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    names += linear(f"{layer}.{attention}.{projection}")
                names += linear(f"{layer}.{attention}_norm")
            for part in ("ffn.fc1", "ffn.fc2", "ffn_norm"):
                names += linear(f"{layer}.{part}")
        if kind == "pre_ln":
            names += linear(f"{stack}.final_norm")
    return set(names)


class TestNames:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("embedding_norm", [True, False])
    def test_canonical_and_complete(self, kind, tied, embedding_norm):
        model = whole(section(kind, tie_embeddings=tied, embedding_norm=embedding_norm))
        expected = expected_names(kind, tied, embedding_norm)
        assert set(model.state_dict()) == expected
        assert {name for name, _ in model.named_parameters()} == expected

    def test_the_designs_example(self):
        model = LayerList(spec_of(section(decoder_layers=13)), start=N + 1)
        assert "decoder.layers.12.cross_attention.v_proj.weight" in model.state_dict()

    def test_pieces_have_the_wholes_names_and_weights(self):
        config = section("pre_ln", tie_embeddings=False)
        spec, model = spec_of(config), whole(config).state_dict()
        seen = {}
        for i in range(len(spec.layers)):
            piece = LayerList(spec, i, i + 1, seed=5)
            for name, value in piece.state_dict().items():
                assert torch.equal(value, model[name]), name
                seen[name] = seen.get(name, 0) + 1
        assert seen.keys() == model.keys()
        assert {name for name, count in seen.items() if count > 1} == {"token_embedding.weight"}

    def test_inputs(self):
        spec = spec_of(section())
        assert spec.inputs == ("input_ids", "attention_mask", "decoder_input_ids", "sample_key")
        data = batch()
        assert all(a is data[key] for key, a in zip(spec.inputs, spec.state(data), strict=True))
        names = [layer.name for layer in spec.layers]
        assert len(set(names)) == len(names)
        assert names.index("decoder.embeddings") == spec.preferred_cuts[0] == N + 1

    def test_roles_and_rows(self):
        roles = parameter_roles(whole(section("pre_ln", tie_embeddings=False)))
        assert set(roles.values()) == {"norms", "embeddings", "biases", "weights"}
        for name, role in roles.items():
            if "norm" in name:
                assert role == "norms", name
            elif "embedding" in name or name.startswith("output_projection"):
                assert role == "embeddings", name
            else:
                assert role == ("biases" if name.endswith("bias") else "weights"), name
        assert row_group("decoder.layers.12.ffn.fc1.weight") == ("decoder", 12)
        assert row_group("token_embedding.weight") == ("token_embedding", 0)
        assert row_group("encoder.embeddings.norm.bias") == ("encoder.embeddings", 0)
        assert row_group("decoder.final_norm.weight") == ("decoder.final_norm", 0)


@pytest.mark.parametrize("kind", KINDS)
class TestEquations:
    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("embedding_norm", [True, False])
    def test_whole_model(self, kind, tied, embedding_norm):
        config = section(kind, tie_embeddings=tied, embedding_norm=embedding_norm, activation="gelu")
        model = whole(config).double()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        weights = dict(model.named_parameters())
        expected, _ = equations.encoder_decoder(weights, config, batch())
        found = logits(model)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        direction = torch.randn(found.shape, generator=generator, dtype=torch.float64)
        gradients = torch.autograd.grad((found * direction).sum(), list(weights.values()))
        reference = torch.autograd.grad((expected * direction).sum(), list(weights.values()))
        for name, a, b in zip(weights, gradients, reference, strict=True):
            assert float((a - b).abs().max()) <= 1e-10 * max(1.0, float(b.abs().max())), name
            assert "k_proj.bias" in name or float(b.abs().max()) > 1e-6, name

    def test_pieces_compose_to_the_whole_exactly(self, kind):
        config = section(kind, dropout=0.2)
        spec, model = spec_of(config), whole(config).double()
        expected = logits(model)
        count = len(spec.layers)
        every = [range(a, count + 1, step) for a in (1,) for step in (1, 2, 3)]
        for inner in ([2], [N + 1], [count - 1], [1, 3, N + 1, count - 2], *map(list, every)):
            bounds = sorted({0, count, *inner})
            state = spec.state(batch())
            for a, b in itertools.pairwise(bounds):
                state = LayerList(spec, a, b, seed=5).double()(state)
            assert torch.equal(state[0], expected), bounds

    @pytest.mark.parametrize("every", [1, 2, 3, 5, 100])
    def test_recomputation_changes_nothing(self, kind, every):
        config = section(kind, dropout=0.3)
        plain, saving = whole(config).double(), whole(config, checkpoint_every=every).double()
        results = []
        for model in (plain, saving):
            out = logits(model)
            (out * torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)).sum().backward()
            results.append((out, {name: p.grad for name, p in model.named_parameters()}))
        assert torch.equal(results[0][0], results[1][0])
        for name, gradient in results[0][1].items():
            torch.testing.assert_close(results[1][1][name], gradient, rtol=1e-12, atol=1e-13, msg=name)

    def test_evaluation_is_without_dropout(self, kind):
        dropping, plain = (whole(section(kind, dropout=p)).double() for p in (0.3, 0.0))
        with torch.no_grad():
            assert torch.equal(logits(dropping.eval()), logits(plain))
            assert not torch.equal(logits(dropping.train()), logits(plain))

    def test_dropout_belongs_to_the_sample(self, kind):
        """A row's logits do not depend on which rows stand beside it, with dropout too."""
        model, data = whole(section(kind, dropout=0.3)).double(), batch()
        with torch.no_grad():
            together = logits(model, data)
            for rows in ([2], [3, 1], [1, 1, 0]):
                alone = logits(model, {key: value[rows] for key, value in data.items()})
                torch.testing.assert_close(alone, together[rows], rtol=1e-12, atol=1e-12)
            other = logits(model, {**data, "sample_key": data["sample_key"].flip(0)})
        assert float((other - together).abs().amax((1, 2)).min()) > 1e-3

    def test_the_decoder_is_causal(self, kind):
        model, data = whole(section(kind)).double().eval(), batch()
        with torch.no_grad():
            before = logits(model, data)
            for position in range(T):
                ids = data["decoder_input_ids"].clone()
                ids[:, position] = (ids[:, position] + 7) % V
                after = logits(model, {**data, "decoder_input_ids": ids})
                assert torch.equal(after[:, :position], before[:, :position])
                assert float((after[:, position:] - before[:, position:]).abs().amax(2).min()) > 1e-9

    def test_padding_is_not_seen_and_every_real_token_is(self, kind):
        model, data = whole(section(kind)).double().eval(), batch()
        with torch.no_grad():
            before = logits(model, data)
            for position in range(S):
                ids = data["input_ids"].clone()
                ids[:, position] = (ids[:, position] + 7) % V
                change = (logits(model, {**data, "input_ids": ids}) - before).abs().amax((1, 2))
                for row in range(B):
                    if data["attention_mask"][row, position]:
                        assert float(change[row]) > 1e-9, (row, position)
                    else:
                        assert float(change[row]) == 0.0, (row, position)

    def test_every_layer_and_every_parameter_counts(self, kind):
        """Changing any single parameter changes the logits (but a bias on the keys, which softmax does not see)."""
        model = whole(section(kind, tie_embeddings=False)).double().eval()
        with torch.no_grad():
            before = logits(model)
            for name, parameter in model.named_parameters():
                kept = parameter.clone()
                generator = torch.Generator().manual_seed(1)
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                change = float((logits(model) - before).abs().max())
                assert change > 1e-9 or ("k_proj.bias" in name and change < 1e-9), name
                parameter.copy_(kept)
            assert torch.equal(logits(model), before)


def test_a_tied_output_is_the_embedding():
    """An id that no input holds: changing its embedding changes its logit and nothing else."""
    model = whole(section()).double().eval()
    data = {key: value % (V - 1) if "ids" in key else value for key, value in batch().items()}
    with torch.no_grad():
        before = logits(model, data)
        model.token_embedding.weight[V - 1] *= 2
        after = logits(model, data)
    torch.testing.assert_close(after[..., V - 1], 2 * before[..., V - 1])
    assert torch.equal(after[..., : V - 1], before[..., : V - 1])


def test_seed_none_leaves_parameters_to_be_filled():
    spec = spec_of(section())
    model = LayerList(spec)
    model.load_state_dict(whole(section()).state_dict())
    assert torch.equal(logits(model), logits(whole(section())))


def test_building_draws_nothing_from_the_global_generator():
    before = torch.get_rng_state()
    model = whole(section(dropout=0.1))
    logits(model).sum().backward()
    assert torch.equal(before, torch.get_rng_state())


def test_shorter_inputs_than_the_tables():
    model, data = whole(section()).double(), batch()
    short = {key: value[:, :5] if value.ndim == 2 else value for key, value in data.items()}
    expected, _ = equations.encoder_decoder(dict(model.named_parameters()), section(), short)
    torch.testing.assert_close(logits(model, short), expected, rtol=1e-10, atol=1e-10)


def test_a_thousand_layers_as_data_and_on_the_meta_device():
    config = section(encoder_layers=500, decoder_layers=500, hidden_size=64, ffn_size=128)
    spec = encoder_decoder(config, 4096, 128, 96)
    names = [layer.name for layer in spec.layers]
    assert len(names) == len(set(names)) == 1003
    assert [n for n in names if ".layers." in n] == [
        f"{stack}.layers.{i}" for stack in ("encoder", "decoder") for i in range(500)
    ]
    with torch.device("meta"):
        model = LayerList(spec)
    d, f = 64, 128
    ffn, attention, norm = 2 * d * f + d + f, 4 * (d * d + d), 2 * d
    expected = 500 * (attention + ffn + 2 * norm) + 500 * (2 * attention + ffn + 3 * norm)
    expected += 4096 * d + (128 + 96) * d + 2 * norm
    assert sum(p.numel() for p in model.parameters()) == expected
    assert all(p.is_meta for p in model.parameters())
    last = LayerList(spec, 1001, seed=1)
    assert {name.split(".layers.")[1].split(".")[0] for name in last.state_dict() if ".layers." in name} == {"499"}
    assert set(last.shared_modules()) == {"token_embedding"}
