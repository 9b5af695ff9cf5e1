"""The order of memory, whatever the addresses."""

from __future__ import annotations

import torch

from pretrain.parallel.memory_order import memory_order


def test_buffers_as_they_are_met_and_each_in_its_order():
    low, high = sorted((torch.zeros(10), torch.zeros(10)), key=torch.Tensor.data_ptr)
    for first, second in ((low, high), (high, low)):
        tensors = [first[6:], second[4:6], first[:3], second[:4], first[3:6]]
        assert memory_order(tensors) == [2, 4, 0, 3, 1]
