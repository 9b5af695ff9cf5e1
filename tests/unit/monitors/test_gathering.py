"""What goes through the reductions of a sample, and how work is piled up before."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from pretrain.monitors import listening, parameter_chunks
from pretrain.monitors.depth import FIRST, DepthSignals, gather
from pretrain.monitors.listening import Pile
from pretrain.monitors.parameter_chunks import BLOCK, chunks_of
from pretrain.monitors.signals import NOTHING, Part
from pretrain.parallel.engine import Shard
from pretrain.parallel.norms import lengths


class Largest:
    def profiles(self, sums, maxima):
        return {"largest": {"model": maxima.tolist()}}


def test_a_nan_is_not_lost_to_another_ranks_number():
    """A maximum of NaN and a number depends on which comes first; of infinity and a number it does not."""
    part = Part(NOTHING, torch.tensor([1.0, math.nan, -math.inf], dtype=torch.float64))
    assert gather([Largest()], [part])["largest"]["model"] == [1.0, math.inf, -math.inf]


@pytest.mark.parametrize(("interval", "steps"), [(0, []), (4, [1, 4, 8, 12]), (10, [1, 10]), (12, [*FIRST, 12])])
def test_the_first_steps_are_sampled(interval, steps):
    trainer = SimpleNamespace(experiment=SimpleNamespace(monitors=SimpleNamespace(interval=interval)))
    depth = DepthSignals([], probe=None)
    assert [step for step in range(1, 13) if depth._sampled(trainer, step)] == steps


@pytest.mark.parametrize("together", [1, 12, 1000])
def test_a_pile_loses_nothing(together, monkeypatch):
    monkeypatch.setattr(listening, "TOGETHER", together)
    found = []
    pile = Pile(lambda rows, x, y: found.extend(zip(rows, x.tolist(), y.tolist(), strict=True)))
    for row in range(7):
        pile.add(row, 4, torch.tensor([float(row)]), torch.tensor([-float(row)]))
    pile.clear()
    pile.clear()
    assert found == [(row, [float(row)], [-float(row)]) for row in range(7)]


@pytest.mark.parametrize("at_a_time", [1, 400, 2**18])
def test_chunks_hold_every_row_once(at_a_time, monkeypatch):
    """Shards of two buffers, neighbours and not, sizes that fill no block; squares against fp64 one by one.

    Some squares are too small or too large for fp32, which is exact to 3e-7 otherwise.
    """
    monkeypatch.setattr(parameter_chunks, "AT_A_TIME", {"cpu": at_a_time})
    buffers = [torch.randn(3 * BLOCK, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    buffers[0][500:507] *= 1e-25
    buffers[1][:BLOCK] *= 1e25
    ranges = {
        "a": (0, 0, 100),
        "b": (0, 100, 300),
        "c": (1, 0, BLOCK),
        "d": (1, BLOCK + 5, BLOCK + 6),
        "e": (0, 500, 507),
    }
    rows = {"a": 3, "b": 3, "c": 1, "d": 3, "e": 2}
    shards = [
        Shard(name, (stop - start,), 0, stop - start, flat, flat, flat, lambda flat=flat: 2 * flat)
        for name, (buffer, start, stop) in ranges.items()
        for flat in [buffers[buffer][start:stop]]
    ]
    expected = torch.zeros(4, dtype=torch.float64)
    for shard in shards:
        expected[rows[shard.name]] += shard.weight.double().square().sum()
    found, sizes = torch.zeros(4, dtype=torch.float64), torch.zeros(4)
    for chunk in chunks_of(shards, rows.__getitem__):
        found[chunk.rows] += chunk.squares(chunk.weights())
        sizes[chunk.rows] += torch.tensor(chunk.sizes)
        torch.testing.assert_close(chunk.squares(chunk.gradients()), 4 * chunk.squares(chunk.second_moments()))
        torch.testing.assert_close(chunk.less_weights_(2 * chunk.weights()), chunk.weights())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert sizes.tolist() == [0, BLOCK, 7, 301]


@pytest.mark.parametrize("size", [1e-30, 1e-10, 1.0, 1e25])
def test_what_passes_a_norm_may_be_of_any_size(size):
    """A gradient of 1e-24 reaches the lowest layers of a deep Post-LN; its squares are 0 in fp32."""
    x = size * torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(lengths(x), x.double().norm(dim=-1), rtol=1e-6, atol=0)
