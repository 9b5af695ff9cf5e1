"""Over-smoothing and effective rank of single samples: known values, and that only tokens count."""

from __future__ import annotations

from types import SimpleNamespace

import activations_by_hand as by_hand
import pytest
import torch

from pretrain.config.schema import ModelSection
from pretrain.models.decoder import decoder
from pretrain.models.layer_list import LayerList
from pretrain.monitors.depth import gather
from pretrain.monitors.effective_rank import EffectiveRank
from pretrain.monitors.layer_outputs import Content
from pretrain.monitors.over_smoothing import OverSmoothing

torch.set_num_threads(1)
MODEL = ModelSection(family="decoder", decoder_layers=2, hidden_size=8, num_heads=2, ffn_size=8)
SPEC = decoder(MODEL, 20, 0, 6)


def measured(x, content=None):
    """(token cosine, high-frequency ratio, effective rank) of one sample [T, d]."""
    content = torch.ones(len(x), dtype=torch.bool) if content is None else content
    counts = Content.of(content[None])
    values = [signal(SPEC).measure(x[None] * counts.mask, counts) for signal in (OverSmoothing, EffectiveRank)]
    return [float(value) for part in values for value in part]


def test_equal_tokens():
    assert measured(torch.full((6, 8), 0.7)) == pytest.approx([1.0, 0.0, 1.0], abs=1e-6)


def test_no_figure_leaves_its_range():
    """Tokens that are all but equal, of many sizes: rounding alone takes each figure to its limit, never beyond."""
    generator = torch.Generator().manual_seed(5)
    base = torch.randn(64, 1, 32, generator=generator).expand(64, 48, 32)
    for noise in (0.0, 1e-7, 1e-4):
        x = (
            base
            * (1 + noise * torch.randn(64, 48, 1, generator=generator))
            * 10.0 ** torch.arange(-8, 8).repeat(4)[:, None, None]
        )
        content = Content.of(torch.ones(64, 48, dtype=torch.bool))
        cosine, high = OverSmoothing(SPEC).measure(x, content)
        (rank,) = EffectiveRank(SPEC).measure(x, content)
        for figure, low, most in ((cosine, -1 / 47, 1.0), (high, 0.0, 1.0), (rank, 1.0, 32.0)):
            assert low <= float(figure.min())
            assert float(figure.max()) <= most


def test_parallel_tokens_of_different_size():
    cosine, high, rank = measured(torch.outer(torch.tensor([1.0, 2.0, 3.0]), torch.ones(8)))
    assert (cosine, rank) == pytest.approx((1.0, 1.0), abs=1e-5)
    assert high == pytest.approx((2 / 14) ** 0.5)


def test_orthogonal_tokens():
    assert measured(torch.eye(4, 8)) == pytest.approx([0.0, 0.75**0.5, 4.0], abs=1e-6)


def test_opposite_tokens():
    assert measured(torch.tensor([[2.0, 0.0], [-2.0, 0.0]])) == pytest.approx([-1.0, 1.0, 1.0], abs=1e-6)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_an_output_that_is_not_finite_is_shown_as_such(wrong):
    """Not as an error of the decomposition, on this rank alone."""
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(3))
    content = Content.of(torch.ones(2, 6, dtype=torch.bool))
    (whole,) = EffectiveRank(SPEC).measure(x, content)
    x[0, 2, 5] = wrong
    (found,) = EffectiveRank(SPEC).measure(x, content)
    assert found[0].isnan()
    assert found[1] == whole[1]


def test_only_tokens_count():
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
    content = torch.tensor([False, True, True, True, True, False])
    found = measured(x, content)
    assert found == pytest.approx(list(by_hand.outputs(x.double()[None], content[None]).values()), abs=1e-6)
    x[~content] *= 1e6
    assert measured(x, content) == found


def test_filler_and_samples_without_a_pair_are_left_out():
    """Rows 0 to 2 are samples; of row 1 a single token is real, of row 2 none. Row 3 is filler."""
    layers = LayerList(SPEC, seed=2).eval()
    ids = torch.randint(20, (4, 6), generator=torch.Generator().manual_seed(4))
    mask = (torch.arange(6) < torch.tensor([[4], [1], [0], [6]])).long()
    batch = {"input_ids": ids, "attention_mask": mask, "sample_key": torch.arange(4)}
    watched = by_hand.Watched(layers, SPEC.state(batch))
    engine = SimpleNamespace(layers=layers)
    chosen = [OverSmoothing(SPEC), EffectiveRank(SPEC)]
    for signal in chosen:
        signal.before_probe(engine, SimpleNamespace(batches=[batch], rows=[range(3)]))
    with torch.no_grad():
        layers(SPEC.state(batch))
    found = gather(chosen, [signal.collect(engine) for signal in chosen])
    for name, rows in found.items():
        expected = [by_hand.outputs(x[:1], mask[:1].bool())[name] for x in watched.outputs["decoder"]]
        assert rows == {"decoder": pytest.approx(expected, abs=1e-5)}
    assert not any(module._forward_hooks for module in layers.modules())
