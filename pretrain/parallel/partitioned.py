"""ZeRO-3: weights, gradients and optimizer state are all sharded; a block's weights are gathered as it runs.

DeepSpeed cuts each flattened parameter into equal ranges, the last one padded, and keeps this rank's ranges of all
parameters of an optimizer group in one flat tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import deepspeed
import torch
from deepspeed.utils import set_z3_leaf_module
from torch import Tensor, nn
from torch.utils.checkpoint import set_checkpoint_early_stop

from pretrain.models.layer_list import LayerList
from pretrain.objectives.cross_entropy import TokenLoss
from pretrain.parallel.engine import Batch, Shard
from pretrain.parallel.plain import PlainEngine
from pretrain.parallel.shards import new_moments

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def partitioned_layers(build: Callable[..., LayerList], config: dict[str, Any], precision: str) -> LayerList:
    """Layers that are sharded one after the other as they are built: no rank ever holds the whole model.

    Args:
        build: makes a LayerList; takes `placed`.
        config: the complete DeepSpeed configuration.
        precision: train.precision.
    """
    init = deepspeed.zero.Init(config_dict_or_path=config, dtype=DTYPES[precision])

    def shard(module: nn.Module) -> None:
        module.to(init.local_device)  # with its buffers, which DeepSpeed leaves where they are
        for parameter in module.parameters():
            parameter.data = parameter.data.to(DTYPES[precision])
        init._convert_to_zero_parameters(module.parameters())

    layers = build(placed=shard)
    for name, module in layers.built_layers():
        if ".layers." in name:
            # Gathered and reduced as a whole: hooks on a block's parts cost more than its arithmetic.
            set_z3_leaf_module(module, True)
    return layers


class PartitionedEngine(PlainEngine):
    """See PlainEngine. `layers` come with their blocks marked, and sharded as they were built."""

    def attach(self, deepspeed_engine: Any) -> None:
        self.deepspeed = deepspeed_engine
        self.before_update = []
        optimizer = deepspeed_engine.optimizer
        for flat in optimizer.fp32_partitioned_groups_flat:
            optimizer.optimizer.state[flat] = new_moments(flat, fused=True)
        self.listen(optimizer)
        # A shared table is read beside its own forward: whoever runs the layers needs it gathered.
        for module in self.layers.shared_modules().values():
            deepspeed.zero.register_external_parameter(self.layers, module.weight)
        keep_recomputed(optimizer.parameter_offload.get_param_coordinator())

    def _summed_loss(self, batch: Batch, loss: TokenLoss) -> Tensor:
        # A recomputation that ends early would leave out the hooks that let weights go.
        with set_checkpoint_early_stop(False):
            return super()._summed_loss(batch, loss)

    def owned_shards(self, replicas: bool = False) -> Iterator[Shard]:
        optimizer = self.deepspeed.optimizer
        parameters: Iterator[tuple[str, Any]] = self.layers.named_parameters()
        for name, parameter in parameters:
            group, offset, padded = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = self.data_parallel_rank * padded
            length = min(padded, parameter.ds_numel - start)
            if length <= 0:
                continue
            flat = optimizer.fp32_partitioned_groups_flat[group]
            state = optimizer.optimizer.state[flat]

            def view(buffer: Tensor, offset: int = offset, length: int = length) -> Tensor:
                return buffer.detach().narrow(0, offset, length)

            yield Shard(
                name=name,
                shape=tuple(parameter.ds_shape),
                start=start,
                stop=start + length,
                weight=view(flat),
                exp_avg=view(state["exp_avg"]),
                exp_avg_sq=view(state["exp_avg_sq"]),
                gradient=partial(self._gradient, parameter, length),
            )

    def _gradient(self, parameter: nn.Parameter, length: int) -> Tensor:
        return self.deepspeed.optimizer.get_local_fp32_grad_for_param(parameter).detach()[:length]

    def _states(self) -> list[dict[str, Tensor]]:
        optimizer = self.deepspeed.optimizer
        return [optimizer.optimizer.state[flat] for flat in optimizer.fp32_partitioned_groups_flat]

    def optimizer_step_count(self) -> int:
        return max(int(state["step"]) for state in self._states())

    def set_optimizer_step_count(self, steps: int) -> None:
        for state in self._states():
            state["step"].fill_(float(steps))

    @torch.no_grad()
    def publish_weights(self) -> None:
        optimizer = self.deepspeed.optimizer
        optimizer._partition_all_parameters()
        for group in range(len(optimizer.fp16_groups)):
            # The partition that the forward pass gathers from; DeepSpeed's own setters leave it stale.
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


def keep_recomputed(coordinator: Any) -> None:
    """Let weights that a recomputation gathered stay for the backward pass that asked for it.

    DeepSpeed would let them go as after any forward pass, and gather them again for each Linear; blocks that are
    gathered as a whole it has gathered before the recomputation, and gradients then meet empty weights.
    """
    release = coordinator.release_sub_module

    def release_unless_recomputed(module: nn.Module, forward: bool = False) -> None:
        if not (forward and torch._C._current_graph_task_id() != -1):
            release(module, forward=forward)

    coordinator.release_sub_module = release_unless_recomputed
