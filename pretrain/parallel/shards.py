"""What a rank owns under ZeRO-1 and 2 (and DeepSpeed's BF16 optimizer), as flat ranges of named parameters.

DeepSpeed flattens each parameter group and gives every data-parallel rank one slice of it; `_hp_mapping` of a
parameter says which of its elements lie in this rank's slice, and where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.parallel.engine import Shard


def new_moments(flat: Tensor, fused: bool) -> dict[str, Tensor]:
    """AdamW's state before the first step, as its first step would make it."""
    return {
        "step": torch.zeros((), dtype=torch.float32, device=flat.device if fused else None),
        "exp_avg": torch.zeros_like(flat, requires_grad=False),
        "exp_avg_sq": torch.zeros_like(flat, requires_grad=False),
    }


def create_moments(inner: torch.optim.Optimizer) -> None:
    """Give AdamW its (zero) moments now, so that shards exist before the first step."""
    for group in inner.param_groups:
        for flat in group["params"]:
            if not inner.state[flat]:
                inner.state[flat] = new_moments(flat, bool(group.get("fused")))


def zero_shards(module: nn.Module, optimizer: Any, replicas: bool) -> Iterator[Shard]:
    """Shards of `module`'s parameters under a DeepSpeed optimizer; names as in the module's state dict."""
    inner = optimizer.optimizer
    for name, parameter in module.named_parameters():
        mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None or (getattr(parameter, "ds_pipe_replicated", False) and not replicas):
            continue
        inside, flat_range = mapping.lp_fragment_address, mapping.hp_fragment_address
        flat = inner.param_groups[mapping.param_group_index]["params"][0]
        state = inner.state[flat]

        def view(buffer: Tensor, start: int = flat_range.start, length: int = flat_range.numel) -> Tensor:
            return buffer.detach().narrow(0, start, length)

        yield Shard(
            name=name,
            shape=tuple(parameter.shape),
            start=inside.start,
            stop=inside.start + inside.numel,
            weight=view(flat),
            exp_avg=view(state["exp_avg"]),
            exp_avg_sq=view(state["exp_avg_sq"]),
            gradient=partial(view, flat.grad) if mapping.use_offload else _gradient_of(parameter),
        )


def _gradient_of(parameter: Any) -> Callable[[], Tensor]:
    """As get_lp_grad_fragment of the parameter's mapping does; thousands are read in a sampled step."""
    mapping = parameter._hp_mapping
    groups, group, index = mapping.gradient_dict, mapping.param_group_index, parameter._index_in_param_group
    start, length = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel

    def gradient() -> Tensor:
        found: Tensor = groups[group][index].float().flatten()
        # The BF16 optimizer keeps the whole parameter's gradient on every rank, ZeRO only the fragment.
        return found if found.numel() == length else found.narrow(0, start, length)

    return gradient


def step_count(inner: torch.optim.Optimizer) -> int:
    return max(int(inner.state[flat]["step"]) for group in inner.param_groups for flat in group["params"])


def set_step_count(inner: torch.optim.Optimizer, steps: int) -> None:
    for group in inner.param_groups:
        for flat in group["params"]:
            inner.state[flat]["step"].fill_(float(steps))
