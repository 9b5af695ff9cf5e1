"""ViT-22B's block: fused against unfused in fp64, each segment's own fan, the bound on the logits, its sizes."""

from __future__ import annotations

import math

import pytest
import targets_equations as equations
import torch

from pretrain.blocks.base import BlockPlace, Streams, dropout_key
from pretrain.blocks.dropout import keep_mask
from pretrain.blocks.init import initialise
from pretrain.blocks.masks import padding_mask, segment_mask
from pretrain.blocks.parallel import ParallelBlock, ParallelConfig
from pretrain.blocks.positions import rotate
from pretrain.config.checks import check
from pretrain.config.load import load_experiment
from pretrain.config.schema import ModelSection
from pretrain.errors import ConfigError
from pretrain.models.parameters import parameter_roles
from pretrain.models.parts import LayerCosts, block

torch.set_num_threads(1)
WIDTH, HEADS, FFN, BATCH, LENGTH = 12, 3, 20, 3, 7
KEY = torch.arange(BATCH)
DOCUMENTS = torch.tensor([[1, 1, 1, 2, 2, 3, 0], [1, 1, 1, 1, 1, 1, 1], [1, 2, 2, 2, 2, 0, 0]])
PREFIX = torch.tensor([[-1, -1, -1, 1, 1, 1, 0], [-1, 1, 1, 1, 1, 1, 1], [-1, -1, 1, -2, -2, 2, 2]])
PADDED = (torch.arange(LENGTH) < torch.tensor([[7], [4], [1]])).long()
MASKS = {
    "causal": ("decoder", None),
    "documents": ("decoder", segment_mask(DOCUMENTS, DOCUMENTS, causal=True)),
    "prefix": ("decoder", segment_mask(PREFIX, PREFIX, causal=True)),
    "bidirectional": ("encoder", None),
    "padding": ("encoder", padding_mask(PADDED)),
    "packed": ("encoder", segment_mask(DOCUMENTS, DOCUMENTS, causal=False)),
}


def place(stack="decoder", **changes):
    depths = (0, 4) if stack == "decoder" else (4, 0)
    sizes = {"hidden_size": WIDTH, "num_heads": HEADS, "ffn_size": FFN, "activation": "gelu", "norm": "rms_norm"}
    return BlockPlace(stack, 1, *depths, **(sizes | changes))


def built(where, perturbed=True, **config):
    module = ParallelBlock(ParallelConfig(**config), where)
    initialise(module, where.name, seed=3)
    if perturbed:
        generator = torch.Generator().manual_seed(8)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return module


def normalised(w, name, x, kind):
    if kind == "layer_norm":
        bias = 0.0 if name.endswith(("q_norm", "k_norm")) else w[f"{name}.bias"]
        return equations.layer_norm(x, w[f"{name}.weight"], bias)
    return w[f"{name}.weight"] * x / ((x**2).mean(-1, keepdim=True) + 1e-5) ** 0.5


def unfused(w, x, visible, where, qk_norm):
    """x + Attn(N(x)) W_O + MLP(N(x)) with every matrix cut out of the fused ones and every head by itself."""
    d, m, size = WIDTH, FFN, WIDTH // HEADS
    y = normalised(w, "input_norm", x, where.norm)
    rows = w["in_proj.weight"]
    q, k, v = (y @ rows[i * d : (i + 1) * d].T for i in range(3))
    outputs = []
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        q_h, k_h = q[..., part], k[..., part]
        if qk_norm:
            q_h = normalised(w, "self_attention.q_norm", q_h, where.norm)
            k_h = normalised(w, "self_attention.k_norm", k_h, where.norm)
        if where.rotary:
            q_h, k_h = rotate(q_h), rotate(k_h)
        scores = (q_h @ k_h.transpose(1, 2) / math.sqrt(size)).masked_fill(~visible, -math.inf)
        weights = torch.exp(scores - scores.max(-1, keepdim=True).values)
        outputs.append(weights / weights.sum(-1, keepdim=True) @ v[..., part])
    attended = torch.cat(outputs, -1) @ w["out_proj.weight"][:, :d].T

    def hidden(first):
        u = y @ rows[first : first + m].T
        return u + w["in_proj.bias"][first - 3 * d : first - 3 * d + m] if where.bias else u

    if where.activation == "swiglu":
        inner = equations.activate("silu", hidden(3 * d)) * hidden(3 * d + m)
    else:
        inner = equations.activate(where.activation, hidden(3 * d))
    out = x + attended + inner @ w["out_proj.weight"][:, d:].T
    return out + w["out_proj.bias"] if where.bias else out


def compare(where, mask, **config):
    """Output and gradients agree to 1e-10 of their own size, and every parameter has a gradient."""
    module = built(where, **config).double()
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(BATCH, LENGTH, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
    visible = torch.ones(1, LENGTH, LENGTH, dtype=torch.bool) if mask is None else mask[:, 0]
    if mask is None and where.causal:
        visible = visible.tril()
    output = module(x, Streams(KEY, mask))
    parameters = dict(module.named_parameters())
    expected = unfused(parameters, x, visible, where, config.get("qk_norm", True))
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    wanted = [x, *parameters.values()]
    found = torch.autograd.grad((output * weights).sum(), wanted)
    reference = torch.autograd.grad((expected * weights).sum(), wanted)
    for name, a, b in zip(["x", *parameters], found, reference, strict=True):
        assert (a - b).abs().max() <= 1e-10 * max(1.0, float(b.abs().max())), name
        assert float(b.abs().max()) > 1e-6, f"{name}: no gradient, nothing was compared"


@pytest.mark.parametrize("case", MASKS)
class TestFusedIsUnfused:
    def test_the_papers(self, case):
        stack, mask = MASKS[case]
        compare(place(stack), mask)

    def test_without_qk_norm_and_biases(self, case):
        stack, mask = MASKS[case]
        compare(place(stack, bias=False), mask, qk_norm=False)

    def test_rotary_gated_layer_norm(self, case):
        stack, mask = MASKS[case]
        compare(place(stack, rotary=True, activation="swiglu", norm="layer_norm"), mask)


@pytest.mark.parametrize("activation", ["relu", "gelu_tanh", "silu"])
def test_activations(activation):
    compare(place(activation=activation), None)


def test_two_products_a_block():
    """And none of the matrices is anything but one of the two."""
    module = built(place("encoder"))
    matrices = {name: tuple(p.shape) for name, p in module.named_parameters() if p.ndim == 2}
    assert matrices == {
        "in_proj.weight": (3 * WIDTH + FFN, WIDTH),
        "out_proj.weight": (WIDTH, WIDTH + FFN),
    }
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile, torch.no_grad():
        module(torch.randn(BATCH, LENGTH, WIDTH), Streams(KEY))
    calls = [event.name for event in profile.events() if event.name == "aten::linear"]
    assert len(calls) == 2


def test_names_and_roles():
    roles = parameter_roles(built(place()))
    assert roles == {
        "input_norm.weight": "norms",
        "in_proj.weight": "weights",
        "in_proj.bias": "biases",
        "self_attention.q_norm.weight": "norms",
        "self_attention.k_norm.weight": "norms",
        "out_proj.weight": "weights",
        "out_proj.bias": "biases",
    }
    shapes = {name: tuple(p.shape) for name, p in built(place()).named_parameters() if p.ndim == 1}
    assert shapes["in_proj.bias"] == (FFN,), "no bias on q, k and v"
    assert shapes["self_attention.q_norm.weight"] == (WIDTH // HEADS,)


@pytest.mark.parametrize("activation", ["gelu", "geglu"])
def test_every_segment_has_its_own_fan(activation):
    """Xavier of separate matrices; 9,216 entries or more, so the error of a deviation is below 0.8%."""
    d, m = 96, 160
    where = place(hidden_size=d, num_heads=4, ffn_size=m, activation=activation)
    module = built(where, perturbed=False).requires_grad_(False)
    widths = [m, m] if activation == "geglu" else [m]
    for segment, rows in zip(module.in_proj.weight.split([d, d, d, *widths]), [d, d, d, *widths], strict=True):
        assert float(segment.std()) == pytest.approx(math.sqrt(2 / (d + rows)), rel=0.03)
    for segment in module.out_proj.weight.split([d, m], dim=1):
        assert float(segment.std()) == pytest.approx(math.sqrt(2 / (d + segment.shape[1])), rel=0.03)
    segments = [segment.flatten()[:9216] for segment in module.in_proj.weight.split([d, d, d, *widths])]
    correlation = torch.corrcoef(torch.stack(segments)).fill_diagonal_(0)
    assert float(correlation.abs().max()) < 5 / 96, "no two segments are the same draw"
    stated = built(place(hidden_size=d, num_heads=4, ffn_size=m, init_std=0.02), perturbed=False).requires_grad_(False)
    assert float(stated.in_proj.weight.std()) == pytest.approx(0.02, rel=0.03)
    assert {float(p.abs().max()) for n, p in module.named_parameters() if n.endswith("bias")} == {0.0}


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("norm", ["rms_norm", "layer_norm"])
def test_logits_are_bounded_however_large_the_weights(norm, rotary):
    """|logit| <= sqrt(d_h) max|gamma_q| max|gamma_k| with W_q and W_k scaled by 1e3; without QK-norm it is passed."""
    size = WIDTH // HEADS
    largest = {}
    for qk_norm in (True, False):
        module = built(place(rotary=rotary, norm=norm), qk_norm=qk_norm).requires_grad_(False)
        with torch.no_grad():
            module.in_proj.weight[: 2 * WIDTH] *= 1e3
        logits = []
        module.self_attention.core.register_forward_pre_hook(
            lambda _, inputs, logits=logits: logits.append(inputs[0] @ inputs[1].mT / math.sqrt(size))
        )
        module(torch.randn(BATCH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1)), Streams(KEY))
        largest[qk_norm] = float(logits[0].abs().max())
        if qk_norm:
            attention = module.self_attention
            gains = attention.q_norm.weight.abs().max() * attention.k_norm.weight.abs().max()
            bound = float(math.sqrt(size) * gains)
    assert largest[True] <= bound * (1 + 1e-5)
    assert largest[True] > 0.3 * bound, "the bound is near"
    assert largest[False] > 1e3 * bound


def test_dropout_falls_on_the_sum_of_the_branches():
    where = place(dropout=0.4)
    module, x = built(where), torch.randn(BATCH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(2))
    branches = module.eval()(x, Streams(KEY)) - x
    kept = keep_mask(KEY, torch.tensor(dropout_key(where.name, 0)), x.shape, 0.4)
    torch.testing.assert_close(module.train()(x, Streams(KEY)), x + branches * kept / 0.6)


SIZES = {  # hidden_size, layers, ffn_size, heads and the kernel parameters of all blocks: L (4 d^2 + 2 d m)
    "vit_g": (1664, 48, 8192, 16, 1_840_250_880),
    "vit_e": (1792, 56, 15360, 16, 3_802_136_576),
    "vit_22b": (6144, 48, 24576, 48, 21_743_271_936),
}


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name):
    d, layers, m, heads, kernels = SIZES[name]
    sizes = {"hidden_size": d, "num_heads": heads, "ffn_size": m, "activation": "gelu", "norm": "rms_norm"}
    model = ModelSection(family="encoder", encoder_layers=layers, block={"kind": "parallel"}, **sizes)
    with torch.device("meta"):
        parameters = dict(block(model, "encoder", 0).named_parameters())
    assert layers * sum(p.numel() for p in parameters.values() if p.ndim == 2) == kernels
    assert kernels == layers * (4 * d * d + 2 * d * m)
    assert sum(p.numel() for p in parameters.values() if p.ndim == 1) == d + 2 * (d // heads) + m + d
    # What the partition and the planner count a token's products at: two operations a kernel entry.
    costs = LayerCosts(model, 100, 1, 0)
    assert costs.encoder - 4 * d == 2 * kernels / layers


def model_error(*overrides):
    with pytest.raises(ConfigError) as error:
        check(load_experiment("demo", ["parallel.pipeline_stages=1", *overrides]), 1, "cpu")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_options_without_a_meaning_are_refused():
    kind = "model.block.kind=parallel"
    assert model_error(kind).startswith("model.block.kind = parallel has no meaning in model.family = encoder_decoder")
    decoder = [kind, "model.family=decoder", "model.encoder_layers=0", "model.qk_norm=true"]
    assert model_error(*decoder, "model.block.qk_norm=false").startswith("model.qk_norm = true contradicts")
