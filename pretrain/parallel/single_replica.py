"""Lighter gradients and masters where one process holds each weight alone (no data parallelism).

DeepSpeed then still walks through ZeRO's steps: every gradient on its way to a reduction that has nothing to reduce,
flattened, measured and cast one by one; in fp32 a second copy of all weights as "masters". Here fp32 weights are their
own masters and AdamW reads their gradients in place; bf16 gradients go into the fp32 ones in one sweep. The arithmetic
is the same.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.utils import combine_grad_norm_groups, is_invalid_grad_norm
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn

from pretrain.parallel.norms import clip_divisor, norms


def simplify(optimizer: Any, data_parallel_size: int) -> None:
    """Replace those steps of a DeepSpeed optimizer; does nothing where gradients are reduced, cast or moved."""
    if data_parallel_size > 1:
        return
    if isinstance(optimizer, BF16_Optimizer):
        if not optimizer.immediate_grad_update:
            MasterGradients(optimizer).install()
    elif isinstance(optimizer, DeepSpeedZeroOptimizer) and _is_plain(optimizer):
        _share_masters(optimizer)
        DirectUpdate(optimizer).install()


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


class DirectUpdate:
    """ZeRO-1's step over one process: AdamW reads every gradient where the backward pass left it.

    Args:
        optimizer: DeepSpeed's, in fp32, whose weights are their own masters.
    """

    def __init__(self, optimizer: Any):
        self.optimizer = optimizer
        self.groups: list[list[nn.Parameter]] = optimizer.params_in_partition
        self._moments: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        """Of each group, in the parameters' shapes: views, made once."""

    def install(self) -> None:
        self.optimizer.reduce_gradients = self.collect
        self.optimizer.scaled_global_norm = self.norm
        self.optimizer.step = self.step

    @torch.no_grad()
    def collect(self, pipeline_parallel: bool = False) -> None:
        """Stand in for the reduction at the end of the last micro-batch's backward pass."""
        for index, parameters in enumerate(self.groups):
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            self.optimizer.averaged_gradients[index] = _gradients(parameters)
            self.optimizer.all_grad_tensors[index] = None
        self.optimizer._epilogue_ran_this_backward = True

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Clip and update; with a norm that is not finite, do neither. In the terms of DeepSpeed's own step."""
        optimizer = self.optimizer
        norm = optimizer.scaled_global_norm()
        optimizer.overflow = is_invalid_grad_norm(norm)
        scale = optimizer.loss_scale
        optimizer._update_scale(optimizer.overflow)
        if optimizer.overflow:
            optimizer._global_grad_norm = float("inf")
        else:
            optimizer._global_grad_norm = norm / scale
            scale = scale * clip_divisor(float(optimizer._global_grad_norm), optimizer.clip_grad)
            for index, parameters in enumerate(self.groups):
                self._adamw(index, parameters, torch.tensor(scale, dtype=torch.float32, device=norm.device))
        optimizer.zero_grad(set_to_none=True)
        for index in range(len(self.groups)):
            optimizer.averaged_gradients[index] = None

    def _adamw(self, index: int, parameters: list[nn.Parameter], scale: Tensor) -> None:
        """One pass over weights, moments and gradients, which are divided by `scale` on the way."""
        group = self.optimizer.optimizer.param_groups[index]
        state = self.optimizer.optimizer.state[group["params"][0]]
        state["step"] += 1
        if index not in self._moments:
            self._moments[index] = _views(state["exp_avg"], parameters), _views(state["exp_avg_sq"], parameters)
        # What torch.optim.AdamW(fused=True) calls; through it, each tensor would need a step count of its own.
        torch._fused_adamw_(
            [*parameters],
            _gradients(parameters),
            *self._moments[index],
            [],
            [state["step"]] * len(parameters),
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=scale,
        )

    def norm(self, norm_type: int = 2) -> Tensor:
        """L2 norm of the whole gradient, over all stages, each replicated weight once."""
        groups = []
        for parameters in self.groups:
            counted = [parameter for parameter in parameters if _counts(parameter)]
            # The norm of the tensors' norms is the norm of all; DeepSpeed adds the other stages' to it.
            found = [norms(_gradients(counted))] if counted else []
            groups.append(self.optimizer.get_grad_norm_direct(found, counted[:1]))
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
        return [norms(counted)], {}


def _gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


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
