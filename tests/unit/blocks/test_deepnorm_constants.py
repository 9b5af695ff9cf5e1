"""DeepNorm's constants and gains: arXiv 2203.00555, table in section 3 and the identities they solve."""

from __future__ import annotations

import math

import pytest
import torch

from pretrain.blocks.base import BlockPlace
from pretrain.blocks.deepnorm import DeepNormBlock, DeepNormConfig, deepnorm_constants
from pretrain.blocks.init import initialise
from pretrain.blocks.post_ln import PostLNBlock, PostLNConfig

torch.set_num_threads(1)
DEPTHS = (1, 2, 3, 6, 18, 100, 500, 1000)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_single_stack(stack, depth):
    alpha, beta = deepnorm_constants(stack, *((depth, 0) if stack == "encoder" else (0, depth)))
    assert alpha == pytest.approx((2 * depth) ** 0.25, rel=1e-15)
    assert beta == pytest.approx((8 * depth) ** -0.25, rel=1e-15)
    assert 2 * depth * (beta**2 + beta**2) / alpha**2 == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("N", DEPTHS)
@pytest.mark.parametrize("M", DEPTHS)
class TestEncoderDecoder:
    """v = w = beta in every sublayer of a stack; the sums of section 4 over 2N and 3M sublayers."""

    def test_decoder(self, N, M):
        alpha, beta = deepnorm_constants("decoder", N, M)
        assert (alpha, beta) == pytest.approx(((3 * M) ** 0.25, (12 * M) ** -0.25), rel=1e-15)
        assert 3 * M * (2 * beta**2) / alpha**2 == pytest.approx(1, rel=1e-12)

    def test_encoder(self, N, M):
        alpha, beta = deepnorm_constants("encoder", N, M)
        assert alpha == pytest.approx(0.81 * N**0.25 * M**0.0625, rel=1e-12)
        assert beta == pytest.approx(0.87 / N**0.25 / M**0.0625, rel=1e-12)
        # 0.81 and 0.87 are rounded; with 27^(-1/16) and 27^(1/16) / sqrt(2) this is 1.
        bound = (N**4 * M / 27) ** 0.25 * 2 * beta**2 / alpha**2
        assert bound == pytest.approx(2 * (0.87 / 0.81) ** 2 / 27**0.25, rel=1e-12)
        assert bound == pytest.approx(1.012, abs=5e-4)
        exact = alpha * 27 ** (-1 / 16) / 0.81, beta * 27 ** (1 / 16) / math.sqrt(2) / 0.87
        assert (N**4 * M / 27) ** 0.25 * 2 * exact[1] ** 2 / exact[0] ** 2 == pytest.approx(1, rel=1e-12)
        assert exact == pytest.approx((alpha, beta), rel=5e-3), "the published constants are these, to two digits"

    def test_the_encoders_share_passes_through_every_cross_attention(self, N, M):
        """[sum over M of v_d w_d / alpha_d] * 2N (v_e^2 + w_e^2) / alpha_e^2: whence the factor (N^4 M / 27)^(1/4)."""
        alpha_d, beta_d = deepnorm_constants("decoder", N, M)
        alpha_e, beta_e = deepnorm_constants("encoder", N, M)
        through_the_decoder = M * beta_d**2 / alpha_d
        assert 2 * N * through_the_decoder == pytest.approx((N**4 * M / 27) ** 0.25, rel=1e-12)
        assert through_the_decoder * 2 * N * (2 * beta_e**2) / alpha_e**2 == pytest.approx(1.012, abs=5e-4)

    def test_blocks_take_their_own_stacks(self, N, M):
        for stack in ("encoder", "decoder"):
            module = DeepNormBlock(DeepNormConfig(), BlockPlace(stack, 0, N, M, 4, 1, 4))
            alpha, _ = deepnorm_constants(stack, N, M)
            assert module.alpha == alpha
            norms = [norm for name, norm in module.named_children() if name.endswith("_norm")]
            assert [norm.eps for norm in norms] == [alpha**2 * 1e-5] * (2 if stack == "encoder" else 3)


def block(stack, N, M, width=96, ffn=160):
    where = BlockPlace(stack, 0, N, M, hidden_size=width, num_heads=4, ffn_size=ffn)
    module = DeepNormBlock(DeepNormConfig(), where)
    initialise(module, where.name, seed=11)
    return module


@pytest.mark.parametrize(("stack", "N", "M"), [("encoder", 24, 7), ("decoder", 24, 7), ("encoder", 9, 0)])
def test_gain_of_every_matrix(stack, N, M):
    """Standard deviations: 9,216 entries or more, so their own error is below 0.8%; beta is 0.3 to 0.5 here."""
    module = block(stack, N, M)
    _, beta = deepnorm_constants(stack, N, M)
    seen = 0
    for name, weight in module.state_dict().items():
        if weight.ndim < 2:
            continue
        fan_out, fan_in = weight.shape
        gain = 1.0 if name.endswith(("q_proj.weight", "k_proj.weight")) else beta
        expected = gain * math.sqrt(2 / (fan_in + fan_out))
        assert float(weight.std()) == pytest.approx(expected, rel=0.03), name
        assert abs(float(weight.mean())) < 4 * expected / math.sqrt(weight.numel()), name
        # Normal, not uniform: 4.6% beyond two standard deviations (a uniform one has none).
        assert float((weight.abs() > 2 * weight.std()).float().mean()) == pytest.approx(0.0455, abs=0.01), name
        seen += 1
    assert seen == (10 if stack == "decoder" else 6)
    assert {float(p.abs().max()) for n, p in module.state_dict().items() if n.endswith("bias")} == {0.0}
    assert {(float(p.min()), float(p.max())) for n, p in module.state_dict().items() if "norm.weight" in n} == {(1, 1)}


def test_stacks_have_their_own_gain():
    """24 + 7 layers: the encoder's beta is 0.33, the decoder's (cross-attention too) 0.33 x 1.0...; so use 200 + 2."""
    ratio = deepnorm_constants("decoder", 200, 2)[1] / deepnorm_constants("encoder", 200, 2)[1]
    assert ratio > 1.5
    encoder, decoder = block("encoder", 200, 2), block("decoder", 200, 2)
    for part in ("v_proj", "out_proj"):
        own = encoder.self_attention.get_submodule(part).weight.detach().std()
        for attention in (decoder.self_attention, decoder.cross_attention):
            assert float(attention.get_submodule(part).weight.detach().std() / own) == pytest.approx(ratio, rel=0.04)
    fc2 = decoder.ffn.fc2.weight.detach().std() / encoder.ffn.fc2.weight.detach().std()
    assert float(fc2) == pytest.approx(ratio, rel=0.04)


@pytest.mark.parametrize(("stack", "N", "M"), [("encoder", 24, 7), ("decoder", 24, 7), ("encoder", 9, 0)])
def test_eps_folds_exactly(stack, N, M):
    """eps = alpha^2 * 1e-5; then the block with W_out / alpha in plain Post-LN gives the same outputs."""
    alpha, _ = deepnorm_constants(stack, N, M)
    module = block(stack, N, M).double()
    for name, norm in module.named_children():
        if name.endswith("_norm"):
            assert norm.eps == pytest.approx(alpha**2 * 1e-5, rel=1e-12)
    where = BlockPlace(stack, 0, N, M, hidden_size=96, num_heads=4, ffn_size=160)
    plain = PostLNBlock(PostLNConfig(), where).double()
    weights = {
        name: value / alpha if "out_proj" in name or "fc2" in name else value
        for name, value in module.state_dict().items()
    }
    plain.load_state_dict(weights)
    from pretrain.blocks.base import Streams

    generator = torch.Generator().manual_seed(0)
    x, memory = torch.randn(2, 2, 5, 96, generator=generator, dtype=torch.float64) * 1e-2  # small: eps matters
    streams = Streams(torch.arange(2), memory=memory if stack == "decoder" else None)
    torch.testing.assert_close(plain(x, streams), module(x, streams), rtol=1e-12, atol=1e-12)
