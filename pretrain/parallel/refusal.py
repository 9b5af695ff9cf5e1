"""How a step of DeepSpeed's optimizers is refused: they are told that the gradient's norm is infinite.

Each of them throws such a step away by its own means: gradients and accumulators cleared, nothing of weights, moments
and step counts touched. The norm is where all of them come by, after the reduction and before the first change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.utils import combine_grad_norm_groups, get_global_norm_of_tensors
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from torch import Tensor

Admits = Callable[[Callable[[], float]], bool]
"""Whether a step may be made whose gradient norm (unscaled, before clipping) it may ask for; called on every rank."""


def judge_norm(optimizer: Any, admits: Admits) -> None:
    """Let `admits` decide on every step of a DeepSpeed optimizer whose gradient norm is known."""
    if isinstance(optimizer, BF16_Optimizer):
        _judge_bf16(optimizer, admits)
    elif isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        _judge_partitioned(optimizer, admits)
    else:
        _judge_zero(optimizer, admits)


def _judge_zero(optimizer: Any, admits: Admits) -> None:
    """ZeRO-1 and 2, offloaded or not."""
    norm_of = optimizer.scaled_global_norm

    def judged(*args: Any, **kwargs: Any) -> Tensor:
        norm = norm_of(*args, **kwargs)
        return norm if admits(lambda: float(norm) / optimizer.loss_scale) else torch.full_like(norm, torch.inf)

    optimizer.scaled_global_norm = judged


def _judge_partitioned(optimizer: Any, admits: Admits) -> None:
    """ZeRO-3, which combines the norms of its groups itself."""
    norms_of = optimizer._get_norm_groups

    def judged() -> list[Tensor]:
        norms = norms_of()
        norm = combine_grad_norm_groups(norms)
        return norms if admits(lambda: float(norm) / optimizer.loss_scale) else [torch.full_like(norm, torch.inf)]

    optimizer._get_norm_groups = judged


def _judge_bf16(optimizer: Any, admits: Admits) -> None:
    """DeepSpeed's BF16 optimizer, which takes the norm of these gradients over all stages in its step."""
    gradients_of = optimizer.get_grads_for_norm

    def judged(for_clipping: bool = False) -> Any:
        found = gradients_of(for_clipping)
        if for_clipping:
            return found

        def norm() -> float:
            return float(get_global_norm_of_tensors(found[0], mpu=optimizer.mpu, norm_type=optimizer.norm_type))

        return found if admits(norm) else ([torch.full((1,), torch.inf, device=found[0][0].device)], {})

    optimizer.get_grads_for_norm = judged
