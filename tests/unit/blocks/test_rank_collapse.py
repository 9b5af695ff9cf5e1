"""Signal propagation at the start (2311.01906, section 4): how alike all tokens have become after 18 causal layers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import pretrain.blocks  # noqa: F401
from pretrain.blocks.base import BlockPlace, Streams
from pretrain.blocks.init import initialise
from pretrain.blocks.pre_ln import PreLNBlock
from pretrain.blocks.registry import BLOCKS

torch.set_num_threads(1)
LAYERS, WIDTH, HEADS, LENGTH, SAMPLES = 18, 256, 8, 128, 2


class WithoutAttentionSkip(PreLNBlock):
    """Pre-LN whose attention has no residual and is not shaped."""

    def sublayer(self, x, norm, branch):
        attention = norm is self.self_attention_norm
        return branch(norm(x)) if attention else x + branch(norm(x))


def cosine_after(design, config, seed=0):
    """Mean cosine of two different tokens of a sample after the last layer; 1: all tokens are one."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SAMPLES, LENGTH, WIDTH, generator=generator)
    with torch.no_grad():
        for index in range(LAYERS):
            where = BlockPlace("decoder", index, 0, LAYERS, WIDTH, HEADS, 4 * WIDTH)
            block = design(config, where)
            initialise(block, where.name, seed)
            x = block(x, Streams(torch.arange(SAMPLES)))
    unit = F.normalize(x.double(), dim=-1)
    pairs = unit @ unit.transpose(1, 2)
    others = ~torch.eye(LENGTH, dtype=torch.bool)
    return float(pairs[:, others].mean())


@pytest.mark.parametrize("seed", [0, 1])
def test_three_regimes(seed):
    pre_ln, sas = (BLOCKS.config(kind)() for kind in ("pre_ln", "sas"))
    assert cosine_after(WithoutAttentionSkip, pre_ln, seed) > 0.99
    assert 0.5 < cosine_after(BLOCKS["pre_ln"], pre_ln, seed) < 0.85
    assert cosine_after(BLOCKS["sas"], sas, seed) < 0.2


def test_a_residual_that_outweighs_its_branches_keeps_tokens_apart():
    """DeepNorm's alpha is 2.4 here and ReZero's branches start at 0: the input's own cosine, 0 within 1/16, stays."""
    for kind in ("deepnorm", "rezero"):
        assert abs(cosine_after(BLOCKS[kind], BLOCKS.config(kind)())) < 0.02
