"""What training minimises: label smoothing and z-loss against their formulas, in values and gradients."""

from __future__ import annotations

import math

import pytest
import targets_equations as equations
import torch

from pretrain.objectives.cross_entropy import TokenLoss, cross_entropy_sum

torch.set_num_threads(1)


def sample(dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(3, 5, 11, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 11, (3, 5), generator=generator)
    labels[0, 2:] = -100
    labels[2, 0] = -100
    return logits.to(dtype).requires_grad_(), labels


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("z_loss", [0.0, 1e-4, 0.3])
def test_formula(label_smoothing, z_loss):
    logits, labels = sample()
    found = TokenLoss(label_smoothing, z_loss).sum(logits, labels)
    expected, count = equations.summed_loss(logits, labels, label_smoothing, z_loss)
    assert count == 11
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    a, b = (torch.autograd.grad(loss, logits)[0] for loss in (found, expected))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert (a[labels == -100] == 0).all()
    assert (a[labels != -100].abs().amax(-1) > 1e-3).all()


def test_numbers_by_hand():
    """Logits 0 and log 3: probabilities 1/4 and 3/4, partition 4."""
    logits, labels = torch.tensor([[[0.0, math.log(3)]]], dtype=torch.float64), torch.tensor([[1]])
    costs = -math.log(3 / 4), -math.log(1 / 4)
    assert TokenLoss().sum(logits, labels).item() == pytest.approx(costs[0], rel=1e-12)
    smoothed = 0.8 * costs[0] + 0.2 * (costs[0] + costs[1]) / 2
    assert TokenLoss(label_smoothing=0.2).sum(logits, labels).item() == pytest.approx(smoothed, rel=1e-12)
    squared = costs[0] + 0.5 * math.log(4) ** 2
    assert TokenLoss(z_loss=0.5).sum(logits, labels).item() == pytest.approx(squared, rel=1e-12)


def test_z_loss_sees_the_shift_that_softmax_does_not():
    logits, labels = sample()
    assert cross_entropy_sum(logits + 5, labels).item() == pytest.approx(cross_entropy_sum(logits, labels).item())
    shifted, plain = (TokenLoss(z_loss=0.1).sum(x, labels).item() for x in (logits + 5, logits))
    assert shifted > plain + 1


def test_no_label_no_loss():
    logits, labels = sample()
    loss = TokenLoss(0.1, 0.1).sum(logits, torch.full_like(labels, -100))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_bfloat16_logits_are_summed_in_fp32():
    logits, labels = sample(torch.bfloat16)
    found = TokenLoss(0.1, 1e-2).sum(logits, labels)
    assert found.dtype == torch.float32
    expected, _ = equations.summed_loss(logits.double(), labels, 0.1, 1e-2)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_logits_of_the_labelled_positions_alone():
    """[n, V] instead of [B, T, V]: the same sum, and gradients where there is something to predict."""
    logits, labels = sample()
    whole = TokenLoss(0.1, 0.3).sum(logits, labels)
    some = TokenLoss(0.1, 0.3).sum(logits[labels != -100], labels)
    torch.testing.assert_close(some, whole, rtol=1e-14, atol=0)
    none = TokenLoss(0.1, 0.3).sum(logits[labels == 99], torch.full_like(labels, -100))
    assert none.item() == 0
    none.backward()


def test_large_logits_lose_no_digits():
    """fp32: a shift by 4096 leaves differences of logits exact, hence the loss."""
    logits = torch.tensor([[[0.0, 1.5, -2.25]]], requires_grad=True)
    labels = torch.tensor([[2]])
    plain, shifted = cross_entropy_sum(logits, labels), cross_entropy_sum(logits + 4096, labels)
    assert shifted.item() == pytest.approx(plain.item(), rel=1e-6)


def test_the_upstream_gradient_scales_and_a_second_backward_is_refused():
    """The gradient takes the place of what the loss kept."""
    logits, labels = sample()
    loss = TokenLoss(0.1, 0.3).sum(logits, labels)
    (loss * 0.125).backward(retain_graph=True)
    expected, _ = equations.summed_loss(logits, labels, 0.1, 0.3)
    (wanted,) = torch.autograd.grad(expected * 0.125, logits)
    torch.testing.assert_close(logits.grad, wanted, rtol=1e-12, atol=1e-14)
    with pytest.raises(TypeError):
        loss.backward()
