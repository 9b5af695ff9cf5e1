"""SAS, SAS-P and Value-SkipInit against their equations with the matrix alpha I + beta A - gamma C written out."""

from __future__ import annotations

import math

import pytest
import targets_equations as equations
import torch

from pretrain.blocks.base import BlockPlace, Streams, dropout_key
from pretrain.blocks.dropout import keep_mask
from pretrain.blocks.init import initialise
from pretrain.blocks.masks import padding_mask, segment_mask
from pretrain.blocks.positions import rotate
from pretrain.blocks.registry import BLOCKS
from pretrain.blocks.running_mean import CHUNK, running_mean
from pretrain.blocks.shaped_attention import visible_mean
from pretrain.config.checks import check
from pretrain.config.load import load_experiment
from pretrain.errors import ConfigError
from pretrain.models.parameters import parameter_roles

torch.set_num_threads(1)
WIDTH, HEADS, FFN, BATCH, LENGTH = 12, 3, 20, 3, CHUNK + 5
KINDS = ("sas", "sas_p", "value_skipinit")
SHAPED = ("sas", "sas_p")
KEY = torch.arange(BATCH)
# Three documents and padding; one document; two documents whose first has a prefix, and a prefix alone.
DOCUMENTS = torch.ones(BATCH, LENGTH, dtype=torch.int64)
DOCUMENTS[0, 10:] = 2
DOCUMENTS[0, 30:34] = 3
DOCUMENTS[0, 34:] = 0
PREFIX = DOCUMENTS.clone()
PREFIX[:2, :7] *= -1
PREFIX[2] = -1
PADDED = (torch.arange(LENGTH) < torch.tensor([[LENGTH], [20], [1]])).long()
MASKS = {
    "causal": ("decoder", None),
    "documents": ("decoder", segment_mask(DOCUMENTS, DOCUMENTS, causal=True)),
    "prefix": ("decoder", segment_mask(PREFIX, PREFIX, causal=True)),
    "bidirectional": ("encoder", None),
    "padding": ("encoder", padding_mask(PADDED)),
    "packed": ("encoder", segment_mask(DOCUMENTS, DOCUMENTS, causal=False)),
}


def place(stack="decoder", index=1, layers=4, **changes):
    depths = (0, layers) if stack == "decoder" else (layers, 0)
    sizes = {"hidden_size": WIDTH, "num_heads": HEADS, "ffn_size": FFN, "norm": "rms_norm"}
    return BlockPlace(stack, index, *depths, **(sizes | changes))


def built(kind, where, perturbed=True, **config):
    module = BLOCKS.build(BLOCKS.config(kind)(**config), where)
    initialise(module, where.name, seed=3)
    if perturbed:
        generator = torch.Generator().manual_seed(8)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return module


def visible(where, mask, length=LENGTH):
    """bool [1 or B, T, T]"""
    everyone = torch.ones(1, length, length, dtype=torch.bool)
    if mask is None:
        return everyone.tril() if where.causal else everyone
    return mask[:, 0].expand(-1, length, length)


def attention(w, kind, y, seen, where):
    """Head by head with [T, T] matrices: I, A and C, A at zero logits."""
    size = WIDTH // HEADS

    def part(name, head):
        cut = slice(head * size, (head + 1) * size)
        out = y @ w[f"self_attention.{name}.weight"][cut].T
        out = out + w[f"self_attention.{name}.bias"][cut] if where.bias else out
        return rotate(out) if where.rotary else out

    values = y
    if kind == "value_skipinit":
        values = y @ w["self_attention.v_proj.weight"].T
    elif where.index == 0:
        first, own = "self_attention.v_proj.", torch.eye(WIDTH, dtype=y.dtype)
        values = y @ (w[first + "identity"] * own + w[first + "gain"] * w[first + "weight"]).T
    outputs = []
    for head in range(HEADS):
        logits = part("q_proj", head) @ part("k_proj", head).transpose(1, 2) / math.sqrt(size)
        weights = torch.exp(logits) * seen
        matrix = w["self_attention.beta"][head] * weights / weights.sum(-1, keepdim=True)
        matrix = matrix + w["self_attention.alpha"][head] * torch.eye(y.shape[1], dtype=y.dtype)
        if kind != "value_skipinit":
            matrix = matrix - w["self_attention.gamma"][head] * seen / seen.sum(-1, keepdim=True)
        outputs.append(matrix @ values[..., head * size : (head + 1) * size])
    out = torch.cat(outputs, -1)
    return out @ w["self_attention.out_proj.weight"].T if kind == "value_skipinit" else out


def reference(w, kind, x, seen, where):
    def norm(name, y):
        gain = w.get(f"{name}.weight")
        return y if gain is None else gain * y / ((y**2).mean(-1, keepdim=True) + 1e-5) ** 0.5

    def mlp(y):
        inner = y @ w["ffn.fc1.weight"].T
        if where.activation == "geglu":
            inner = equations.activate("gelu", y @ w["ffn.gate.weight"].T) * inner
        else:
            inner = equations.activate(where.activation, inner)
        return inner @ w["ffn.fc2.weight"].T

    if kind == "sas_p":
        y = norm("input_norm", x)
        return w["ffn_gain.weight"] * mlp(y) + w["self_attention_gain.weight"] * attention(w, kind, y, seen, where)
    attended = attention(w, kind, norm("self_attention_norm", x), seen, where)
    x = w["self_attention_gain.weight"] * attended
    return w["ffn_skip_gain.weight"] * x + w["ffn_gain.weight"] * mlp(norm("ffn_norm", x))


def compare(kind, where, mask, **config):
    """Output and gradients agree to 1e-10 of their own size, and every parameter has a gradient."""
    module = built(kind, where, **config).double()
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(BATCH, LENGTH, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
    output = module(x, Streams(KEY, mask))
    parameters = dict(module.named_parameters())
    expected = reference(parameters, kind, x, visible(where, mask), where)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    wanted = [x, *parameters.values()]
    found = torch.autograd.grad((output * weights).sum(), wanted)
    expected = torch.autograd.grad((expected * weights).sum(), wanted)
    for name, a, b in zip(["x", *parameters], found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-10 * max(1.0, float(b.abs().max())), name
        # Softmax does not see a shift of all keys: only that gradient may vanish.
        assert "k_proj.bias" in name or float(b.abs().max()) > 1e-6, f"{name}: no gradient, nothing was compared"


@pytest.mark.parametrize("case", MASKS)
@pytest.mark.parametrize("kind", KINDS)
class TestEquations:
    @pytest.mark.parametrize("norm", [True, False])
    @pytest.mark.parametrize("index", [0, 1])
    def test_block(self, kind, case, norm, index):
        stack, mask = MASKS[case]
        compare(kind, place(stack, index), mask, norm=norm)

    def test_options(self, kind, case):
        stack, mask = MASKS[case]
        compare(kind, place(stack, rotary=True, activation="geglu", bias=False), mask)


def test_mean_of_what_is_seen_over_a_sample_without_any_key_is_zero():
    v = torch.randn(2, 5, 4)
    nobody = padding_mask(torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]))
    mean = visible_mean(v, nobody, causal=False)
    torch.testing.assert_close(mean[0], v[0, :2].mean(0, keepdim=True))
    assert float(mean[1].abs().max()) == 0.0


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, 2 * CHUNK, 3 * CHUNK + 1])
def test_running_mean(length):
    v = torch.randn(2, length, 3, dtype=torch.float64, requires_grad=True)
    expected = v.cumsum(1) / torch.arange(1, length + 1)[:, None]
    torch.testing.assert_close(running_mean(v), expected, rtol=1e-13, atol=1e-13)
    assert torch.autograd.gradcheck(running_mean, v)


def test_running_mean_in_bf16_stays_true_over_a_long_sequence():
    """Values of mean 1 over 4096 positions: a running sum in bf16 would stand still at 256."""
    v = (1 + torch.randn(1, 4096, 4, generator=torch.Generator().manual_seed(0))).bfloat16()
    expected = v.double().cumsum(1) / torch.arange(1, 4097)[:, None]
    error = (running_mean(v).double() - expected).abs() / expected.abs().clamp(min=1)
    assert float(error.max()) < 3 * 2**-8, "three roundings of bf16, each of at most 2^-8"


def attention_at_the_start(kind, case, index):
    stack, mask = MASKS[case]
    module = built(kind, place(stack, index), perturbed=False).self_attention
    y = torch.randn(BATCH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))
    return module, y, module(y, mask, torch.ones(1))


@pytest.mark.parametrize("case", MASKS)
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("kind", SHAPED)
class TestStart:
    def test_attention_is_the_identity(self, kind, case, index):
        """X + (A - C) X with A = C: off by the rounding of two means of numbers of size 1 to 4 (eps is 1.2e-7)."""
        _, y, output = attention_at_the_start(kind, case, index)
        torch.testing.assert_close(output, y, rtol=0.0, atol=2e-6)

    def test_gradients(self, kind, case, index):
        """dL/dbeta = -dL/dgamma, not zero; dL/dW_K = 0 exactly, and all that is trained reaches W_Q."""
        module, _, output = attention_at_the_start(kind, case, index)
        (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
        scale = float(module.beta.grad.abs().max())
        assert scale > 0.1
        torch.testing.assert_close(module.beta.grad, -module.gamma.grad, rtol=0.0, atol=1e-5 * scale)
        assert float(module.k_proj.weight.grad.abs().max()) == 0.0
        assert float(module.q_proj.weight.grad.abs().max()) > 0.0
        if index == 0:
            assert float(module.v_proj.weight.grad.abs().max()) > 0.0


def test_value_skipinit_starts_as_two_rotations():
    """a I + b A = I, and W_V and W_P are orthogonal: every position keeps its length and sees no other."""
    module, y, output = attention_at_the_start("value_skipinit", "causal", 1)
    for weight in (module.v_proj.weight, module.out_proj.weight):
        torch.testing.assert_close(weight @ weight.T, torch.eye(WIDTH), rtol=0.0, atol=1e-6)
    assert not torch.equal(module.v_proj.weight, module.out_proj.weight)
    torch.testing.assert_close(output, y @ module.v_proj.weight.T @ module.out_proj.weight.T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.norm(dim=-1), y.norm(dim=-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_values_at_the_start(kind):
    """W_Q = 0, every other weight N(0, 0.02^2) or model.init_std; b_FF = 0.1 sqrt(18 / L) or as stated."""
    sizes = {"hidden_size": 96, "num_heads": 4, "ffn_size": 160, "layers": 8}
    for std in (None, 0.05):
        module = built(kind, place(init_std=std, **sizes), perturbed=False).requires_grad_(False)
        for name, weight in module.named_parameters():
            if "q_proj" in name and kind in SHAPED:
                assert float(weight.abs().max()) == 0.0
            elif weight.ndim == 2 and not (
                kind == "value_skipinit" and name.endswith(("v_proj.weight", "out_proj.weight"))
            ):
                assert float(weight.std()) == pytest.approx(std or 0.02, rel=0.03), name
        assert float(module.ffn_gain.weight) == pytest.approx(0.1 * math.sqrt(18 / 8))
        assert float(module.self_attention_gain.weight) == 1.0
        heads = module.self_attention
        assert heads.alpha.tolist() == [1.0] * 4
        assert heads.beta.tolist() == [0.0 if kind == "value_skipinit" else 1.0] * 4
    assert float(built(kind, place(), perturbed=False, ffn_gain=0.05).ffn_gain.weight) == pytest.approx(0.05)
    assert float(built(kind, place(layers=18), perturbed=False).ffn_gain.weight) == pytest.approx(0.1)


def test_gains_have_no_weight_decay_and_nothing_is_left_over():
    """All factors are learned gains; biases on q and k alone; no values, projection or norm that nobody reads."""
    gains = {f"self_attention.{name}" for name in ("alpha", "beta", "gamma")}
    gains |= {"self_attention_gain.weight", "ffn_gain.weight"}
    weights = {"self_attention.q_proj.weight", "self_attention.k_proj.weight", "ffn.fc1.weight", "ffn.fc2.weight"}
    biases = {"self_attention.q_proj.bias", "self_attention.k_proj.bias"}
    first = {"self_attention.v_proj.identity": "gains", "self_attention.v_proj.gain": "gains"}
    first |= {"self_attention.v_proj.weight": "weights"}
    for kind, norms in (("sas", {"self_attention_norm", "ffn_norm"}), ("sas_p", {"input_norm"})):
        expected = dict.fromkeys(gains, "gains") | dict.fromkeys(weights, "weights")
        expected |= dict.fromkeys(biases, "biases")
        if kind == "sas":
            expected["ffn_skip_gain.weight"] = "gains"
        without = dict(expected)
        expected |= {f"{name}.weight": "norms" for name in norms}
        one = {f"{'self_attention' if kind == 'sas' else 'input'}_norm.weight": "norms"}
        assert parameter_roles(built(kind, place(index=1))) == expected
        assert parameter_roles(built(kind, place(index=0))) == expected | first
        assert parameter_roles(built(kind, place(index=1), norm=False)) == without
        assert parameter_roles(built(kind, place(index=0), norm=False)) == without | first | one


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_falls_on_the_mlp_alone(kind):
    """Keyed as a sequential block's second sublayer; attention carries the stream and is left whole."""
    where, x = place(dropout=0.4), torch.randn(BATCH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(2))
    module = built(kind, where).requires_grad_(False)
    whole = module.eval()(x, Streams(KEY))
    module.ffn_gain.weight.zero_()
    rest = module(x, Streams(KEY))
    module = built(kind, where).requires_grad_(False)
    kept = keep_mask(KEY, torch.tensor(dropout_key(where.name, 1)), x.shape, 0.4)
    torch.testing.assert_close(module.train()(x, Streams(KEY)), rest + (whole - rest) * kept / 0.6)


@pytest.mark.parametrize("case", MASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_bf16_is_close_to_fp32(kind, case):
    """A block rounds some ten times to 2^-9 of numbers of size 1 to 10."""
    stack, mask = MASKS[case]
    module = built(kind, place(stack, 0))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.bfloat16())
    x = torch.randn(BATCH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(2)).bfloat16()
    exact = module(x.float(), Streams(KEY, mask))
    output = module.bfloat16()(x, Streams(KEY, mask))
    assert output.dtype == torch.bfloat16
    assert float((output.float() - exact).abs().max()) < 0.02 * float(exact.abs().max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [0, 1, CHUNK - 1, CHUNK, LENGTH - 2])
def test_nothing_comes_from_the_future(kind, at):
    """What changes behind a position changes nothing up to it, not even in the last bit; itself it sees."""
    module = built(kind, place()).requires_grad_(False)
    x = torch.randn(BATCH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(2))
    other = x.clone()
    other[:, at + 1 :] += 5.0
    before, after = module(x, Streams(KEY)), module(other, Streams(KEY))
    assert torch.equal(before[:, : at + 1], after[:, : at + 1])
    assert bool((before[:, at + 1 :] != after[:, at + 1 :]).any(-1).all())


def similarity(module_of, layers=18, width=256, length=128):
    """Mean cosine of two tokens of a sample behind `layers` blocks at the start, from i.i.d. input."""
    x = torch.randn(1, length, width, generator=torch.Generator().manual_seed(0))
    for index in range(layers):
        where = place(index=index, layers=layers, hidden_size=width, num_heads=8, ffn_size=4 * width)
        x = module_of(where).requires_grad_(False)(x, Streams(KEY[:1]))
    x = torch.nn.functional.normalize(x[0], dim=-1)
    return float(((x @ x.T).sum() - length) / (length * (length - 1)))


def test_rank_collapse():
    """Without skip and shaping all tokens become one (a = 0, b = 1); Pre-LN keeps some rank, SAS nearly all."""

    def collapsed(where):
        module = built("value_skipinit", where, perturbed=False).requires_grad_(False)
        module.self_attention.alpha.zero_()
        module.self_attention.beta.fill_(1.0)
        return module

    assert similarity(collapsed) > 0.99
    assert 0.5 < similarity(lambda where: built("pre_ln", where, perturbed=False)) < 0.85
    assert similarity(lambda where: built("sas", where, perturbed=False)) < 0.2
    assert similarity(lambda where: built("sas_p", where, perturbed=False)) < 0.2


@pytest.mark.parametrize("kind", SHAPED)
def test_qk_norm_is_refused(kind):
    overrides = [f"model.block.kind={kind}", "model.family=decoder", "model.encoder_layers=0", "model.qk_norm=true"]
    with pytest.raises(ConfigError, match=rf"^model.qk_norm = true does not go with model.block.kind = {kind}, .*\.?"):
        check(load_experiment("demo", ["parallel.pipeline_stages=1", *overrides]), 1, "cpu")


def test_qk_norm_of_value_skipinit():
    module = built("value_skipinit", place(qk_norm=True))
    assert module.self_attention.q_norm.weight.shape == (WIDTH // HEADS,)
