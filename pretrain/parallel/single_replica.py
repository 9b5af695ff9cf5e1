"""Lighter gradients and masters where one process holds each weight alone (no data parallelism).

DeepSpeed then still walks through ZeRO's steps: every gradient on its way to a reduction that has nothing to reduce,
flattened, measured and cast one by one; in fp32 a second copy of all weights as "masters". Here gradients go in one
sweep into the flat tensor that the optimizer reads, and fp32 weights are their own masters. The arithmetic is the same.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer, GradPartitionBufferGroup
from torch import Tensor, nn


def simplify(optimizer: Any, data_parallel_size: int) -> None:
    """Replace those steps of a DeepSpeed optimizer; does nothing where gradients are reduced, cast or moved."""
    if data_parallel_size > 1:
        return
    if isinstance(optimizer, BF16_Optimizer):
        if not optimizer.immediate_grad_update:
            MasterGradients(optimizer).install()
    elif isinstance(optimizer, DeepSpeedZeroOptimizer) and _is_plain(optimizer):
        _share_masters(optimizer)
        FlatGradients(optimizer).install()


def _is_plain(optimizer: Any) -> bool:
    """ZeRO-1 in fp32 on one device, reduced after the backward pass."""
    special = optimizer.partition_gradients, optimizer.cpu_offload, optimizer.overlap_comm
    return optimizer.dtype == torch.float32 and not any(special) and not optimizer.use_grad_accum_attribute


def _share_masters(optimizer: Any) -> None:
    """In fp32 the flat weights are the masters: no copy to keep, none to write back after a step."""
    for masters, (weights,) in zip(
        optimizer.single_partition_of_fp32_groups, optimizer.parallel_partitioned_bit16_groups, strict=True
    ):
        masters.data = weights.data
    for group in optimizer.bit16_groups:
        for parameter in group:
            mapping = parameter._hp_mapping
            at, masters = mapping.hp_fragment_address, optimizer.single_partition_of_fp32_groups
            mapping.hp_fragment = masters[mapping.param_group_index].data.narrow(0, at.start, at.numel)
    # Parameters are views of the flat weights for good; DeepSpeed would make all of these views anew after each step.
    optimizer._update_model_bit16_weights = lambda group_index: None


class FlatGradients:
    """Gradients of a ZeRO-1 optimizer in one flat tensor a group.

    Args:
        optimizer: DeepSpeed's, over one process.
    """

    def __init__(self, optimizer: Any):
        self.optimizer = optimizer
        self.groups: list[tuple[list[nn.Parameter], GradPartitionBufferGroup]] = []
        for parameters, masters in zip(
            optimizer.params_in_partition, optimizer.single_partition_of_fp32_groups, strict=True
        ):
            flat = torch.zeros_like(masters.data)
            self.groups.append((parameters, GradPartitionBufferGroup(_views(flat, parameters), flat)))

    def install(self) -> None:
        self.optimizer.reduce_gradients = self.gather
        self.optimizer.scaled_global_norm = self.norm

    @torch.no_grad()
    def gather(self, pipeline_parallel: bool = False) -> None:
        """Stand in for the reduction at the end of the last micro-batch's backward pass."""
        for index, (parameters, views) in enumerate(self.groups):
            _copy_gradients(views, parameters)
            self.optimizer.averaged_gradients[index] = views
            self.optimizer.all_grad_tensors[index] = None
        self.optimizer._epilogue_ran_this_backward = True

    def norm(self, norm_type: int = 2) -> Tensor:
        """L2 norm of the whole gradient, over all stages, each replicated weight once."""
        from deepspeed.runtime.utils import combine_grad_norm_groups

        groups = []
        for parameters, views in self.groups:
            counted = [(p, view) for p, view in zip(parameters, views, strict=True) if _counts(p)]
            # The norm of the tensors' norms is the norm of all; DeepSpeed adds the other stages' to it.
            norms = [torch.stack(torch._foreach_norm([view for _, view in counted]))] if counted else []
            groups.append(self.optimizer.get_grad_norm_direct(norms, [p for p, _ in counted[:1]]))
        return combine_grad_norm_groups(groups)


class MasterGradients:
    """bf16 gradients of a BF16_Optimizer, added to the fp32 ones in one sweep, and freed.

    Args:
        optimizer: DeepSpeed's, over one process.
    """

    def __init__(self, optimizer: Any):
        self.optimizer = optimizer
        self.groups: list[tuple[list[nn.Parameter], list[Tensor]]] = []
        for parameters, flat in zip(optimizer.bf16_groups, optimizer.fp32_groups_gradients, strict=True):
            views = [gradient.view(p.shape) for gradient, p in zip(flat, parameters, strict=True)]
            self.groups.append((parameters, views))
            for parameter, gradient in zip(parameters, flat, strict=True):
                parameter._hp_grad = gradient  # the pipeline sums those of tied weights
        self.fresh = True
        """Whether no micro-batch of this step has come yet."""

    def install(self) -> None:
        optimizer = self.optimizer
        optimizer.update_hp_grads = self.accumulate
        optimizer.clear_hp_grads = self.clear
        optimizer.get_grads_for_norm = self.gradients

    @torch.no_grad()
    def accumulate(self, clear_lp_grads: bool = False) -> None:
        """After each micro-batch."""
        for index, (parameters, views) in enumerate(self.groups):
            if self.fresh:
                _copy_gradients(views, parameters)
            else:
                given = [(view, p.grad) for view, p in zip(views, parameters, strict=True) if p.grad is not None]
                torch._foreach_add_([view for view, _ in given], [gradient for _, gradient in given])
                for parameter in parameters:
                    parameter.grad = None
            self.optimizer.fp32_groups_has_gradients[index] = [True] * len(parameters)
        self.fresh = False

    def clear(self) -> None:
        """After a step: the next micro-batch overwrites."""
        self.fresh = True
        for index, (parameters, _) in enumerate(self.groups):
            self.optimizer.fp32_groups_has_gradients[index] = [False] * len(parameters)

    def gradients(self, for_clipping: bool = False) -> Any:
        """What DeepSpeed scales, or takes the norm of: the norm of the tensors' norms is the norm of all."""
        if for_clipping:
            return self.optimizer.fp32_groups_gradients_flat
        counted = [
            view
            for parameters, views in self.groups
            for parameter, view in zip(parameters, views, strict=True)
            if _counts(parameter)
        ]
        return [torch.stack(torch._foreach_norm(counted))], {}


def _views(flat: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """`flat` cut into the parameters' shapes, in their order."""
    sizes = [parameter.numel() for parameter in parameters]
    pieces = flat[: sum(sizes)].split(sizes)
    return [piece.view(parameter.shape) for piece, parameter in zip(pieces, parameters, strict=True)]


def _copy_gradients(views: list[Tensor], parameters: list[nn.Parameter]) -> None:
    """Copy the parameters' gradients (none counts as zero) and free them."""
    given = []
    for view, parameter in zip(views, parameters, strict=True):
        if parameter.grad is None:
            view.zero_()
        else:
            given.append((view, parameter.grad))
            parameter.grad = None
    torch._foreach_copy_([view for view, _ in given], [gradient for _, gradient in given])


def _counts(parameter: nn.Parameter) -> bool:
    """Whether this rank's copy is the one whose gradient counts in the norm."""
    return not getattr(parameter, "ds_pipe_replicated", False)
