"""Dropout by key: the right rate, independent masks, and the same mask wherever the same sample and layer meet."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from pretrain.blocks.base import dropout_key
from pretrain.blocks.dropout import KeyedDropout, keep_mask
from pretrain.data.hashing import hash64

torch.set_num_threads(1)
LAYERS = [
    dropout_key(f"{stack}.layers.{i}", s) for stack in ("encoder", "decoder") for i in range(20) for s in range(3)
]
KEYS = torch.tensor([hash64("sample", 1234, "train", index) >> 1 for index in range(64)])


def mask(keys, layer, shape, probability=0.1):
    return keep_mask(keys, torch.tensor(layer), torch.Size([len(keys), *shape]), probability)


@pytest.mark.parametrize("probability", [0.01, 0.1, 0.3, 0.5, 0.9])
def test_rate(probability):
    kept = mask(KEYS, LAYERS[0], (64, 32), probability).double()
    error = math.sqrt(probability * (1 - probability) / kept.numel())
    assert float(kept.mean()) == pytest.approx(1 - probability, abs=4.5 * error)
    # Each sample, each position and each feature apart: 64 x 32 = 2048 or more draws.
    for dims in ((1, 2), (0, 2), (0, 1)):
        rates = kept.mean(dims)
        error = math.sqrt(probability * (1 - probability) * rates.numel() / kept.numel())
        assert float((rates - (1 - probability)).abs().max()) < 5 * error
        # Their spread is that of independent draws: chi-square, n degrees of freedom, within 5 deviations.
        chi = float((((rates - (1 - probability)) / error) ** 2).sum())
        assert abs(chi - rates.numel()) < 5 * math.sqrt(2 * rates.numel())


def test_mask_does_not_depend_on_neighbours():
    whole = mask(KEYS, LAYERS[3], (10, 16))
    for rows in (slice(0, 1), slice(5, 9), slice(63, 64), torch.tensor([40, 2, 2, 17])):
        assert torch.equal(mask(KEYS[rows], LAYERS[3], (10, 16)), whole[rows])
    # Alone among keys 0 as well, and as part of a longer sequence its first positions stay.
    assert torch.equal(mask(KEYS[:1], LAYERS[3], (40, 16))[:, :10], whole[:1])


@pytest.mark.parametrize("keys", [KEYS[:48], torch.arange(48)], ids=["hashed", "consecutive"])
def test_samples_and_layers_are_uncorrelated(keys):
    """Masks of all (sample, layer) pairs: correlations have standard deviation 1/sqrt(n)."""
    probability, layers = 0.5, LAYERS[:6]
    rows = torch.cat([mask(keys, layer, (512,), probability).double() for layer in layers])
    rows = (rows - 0.5) / 0.5
    correlation = (rows @ rows.T / 512).fill_diagonal_(0)
    assert float(correlation.abs().max()) < 6 / math.sqrt(512)
    pairs = rows.shape[0] * (rows.shape[0] - 1)
    assert float(correlation.square().sum() / pairs * 512) == pytest.approx(1, abs=0.05)
    # The same in pairs of bits: 2^2 cells of (element i of one sample, element i of the next).
    cells = torch.bincount((rows[:-1] > 0).long().flatten() * 2 + (rows[1:] > 0).long().flatten(), minlength=4)
    expected = cells.sum() / 4
    assert float(((cells - expected) ** 2 / expected).sum()) < 30  # chi-square, 3 degrees of freedom: p = 1e-6


@pytest.mark.parametrize("distance", [1, 2, 3, 8, 32, 64, 1024])
def test_elements_are_uncorrelated(distance):
    kept = (mask(KEYS, LAYERS[1], (4096,), 0.5).double() - 0.5) / 0.5
    product = (kept[:, distance:] * kept[:, :-distance]).flatten()
    assert abs(float(product.mean())) < 5 / math.sqrt(product.numel())


def test_bits_above_the_threshold_are_uniform():
    """The share kept at 20 probabilities is right at once: the underlying draw is uniform, not only at 0.1."""
    shares = [float(mask(KEYS, LAYERS[2], (1024,), p / 20).double().mean()) for p in range(1, 20)]
    for share, p in zip(shares, range(1, 20), strict=True):
        assert share == pytest.approx(1 - p / 20, abs=5 * 0.5 / math.sqrt(65536))


def test_masks_nest_and_extremes():
    low, high = (mask(KEYS, LAYERS[2], (256,), p) for p in (0.1, 0.4))
    assert bool((low | ~high).all()), "what is kept at 0.4 is kept at 0.1"
    assert bool(mask(KEYS, LAYERS[2], (256,), 0.0).all())


def test_layer_keys_are_distinct_and_stable():
    everywhere = [
        dropout_key(f"{s}.layers.{i}", k) for s in ("encoder", "decoder") for i in range(600) for k in range(3)
    ]
    assert len(set(everywhere)) == len(everywhere)
    assert all(0 <= key < 2**63 for key in everywhere)
    # Written down: a change would give every resumed run other masks.
    import hashlib

    digest = hashlib.blake2b(b"decoder.layers.12/2", digest_size=8).digest()
    assert dropout_key("decoder.layers.12", 2) == int.from_bytes(digest, "little") >> 1


def test_expectation_is_preserved_and_kept_values_are_scaled():
    layer = KeyedDropout(0.25, LAYERS[0])
    x = torch.rand(64, 50, 8, dtype=torch.float64) + 1
    y = layer(x, KEYS)
    kept = y != 0
    torch.testing.assert_close(y[kept], x[kept] / 0.75)
    many = torch.stack([KeyedDropout(0.25, key)(x[:4], KEYS[:4]) for key in LAYERS]).mean(0)
    spread = float((many / x[:4]).std())
    assert float((many / x[:4]).mean()) == pytest.approx(1, abs=5 * spread / math.sqrt(many.numel()))
    assert spread == pytest.approx(math.sqrt(0.25 / 0.75 / len(LAYERS)), rel=0.1)


def test_evaluation_and_zero_probability_are_the_identity():
    x = torch.randn(64, 7)
    assert KeyedDropout(0.5, LAYERS[0]).eval()(x, KEYS) is x
    assert KeyedDropout(0.0, LAYERS[0]).train()(x, KEYS) is x


@pytest.mark.parametrize("preserve_rng_state", [True, False])
def test_recomputation_draws_the_same_mask(preserve_rng_state):
    layer, x = KeyedDropout(0.5, LAYERS[0]), torch.randn(64, 20, requires_grad=True)
    (plain,) = torch.autograd.grad(layer(x, KEYS).square().sum(), x)
    y = checkpoint(layer, x, KEYS, use_reentrant=False, preserve_rng_state=preserve_rng_state)
    torch.manual_seed(5)
    (again,) = torch.autograd.grad(y.square().sum(), x)
    assert torch.equal(plain, again)


def test_global_generator_is_not_used():
    before = torch.get_rng_state()
    KeyedDropout(0.5, LAYERS[0])(torch.ones(64, 20), KEYS)
    assert torch.equal(before, torch.get_rng_state())


def test_key_is_no_part_of_the_saved_state():
    assert KeyedDropout(0.5, LAYERS[0]).state_dict() == {}
