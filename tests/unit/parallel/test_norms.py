"""L2 norms of many tensors: as exact where a CPU would add up millions of squares in fp32."""

from __future__ import annotations

import pytest
import torch

from pretrain.parallel.norms import clip_divisor, norms


@pytest.mark.parametrize("sizes", [[3], [1 << 22], [5, 1 << 22, 7, 1 << 14, 1 << 12]])
def test_norms_are_those_of_fp64(sizes):
    """Equal elements, all of which are rounded to the same side, are the hardest: fp32 alone is 1e-5 off at 2^14."""
    generator = torch.Generator().manual_seed(0)
    for fill in (lambda n: torch.randn(n, generator=generator), lambda n: torch.full((n,), 1e-3)):
        tensors = [fill(size) for size in sizes]
        expected = torch.stack([tensor.double().norm() for tensor in tensors])
        torch.testing.assert_close(norms(tensors), expected, rtol=4e-6, atol=0)


def test_a_gradient_is_divided_only_above_the_limit():
    assert clip_divisor(0.5, 1.0) == clip_divisor(7.0, 0.0) == 1.0
    assert clip_divisor(7.0, 2.0) == pytest.approx(3.5)
