"""The loss as a sum, and its count."""

import math

import pytest
import torch

from pretrain.objectives.cross_entropy import count_targets, cross_entropy_sum


def test_uniform_logits_cost_log_of_the_vocabulary_for_each_target():
    labels = torch.tensor([[1, 2, -100], [-100, 0, 3]])
    loss = cross_entropy_sum(torch.zeros(2, 3, 7), labels)
    assert loss.item() == pytest.approx(4 * math.log(7), rel=1e-6)
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert count_targets(labels).item() == 4
    assert count_targets(labels).dtype == torch.int64


def test_it_is_additive_over_batches():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 5, 11, dtype=torch.float64), torch.randint(0, 11, (4, 5))
    parts = sum(cross_entropy_sum(logits[i : i + 1], labels[i : i + 1]) for i in range(4))
    torch.testing.assert_close(parts, cross_entropy_sum(logits, labels), rtol=1e-12, atol=0)


def test_bfloat16_logits_are_summed_in_fp32():
    torch.manual_seed(0)
    logits, labels = torch.randn(8, 64, 50).bfloat16(), torch.randint(0, 50, (8, 64))
    wanted = cross_entropy_sum(logits.double(), labels)
    found = cross_entropy_sum(logits, labels)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_ignored_labels_have_no_weight_and_no_gradient():
    logits = torch.randn(1, 3, 5, requires_grad=True)
    loss = cross_entropy_sum(logits, torch.full((1, 3), -100))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().sum() == 0
