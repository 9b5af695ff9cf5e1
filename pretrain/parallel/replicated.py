"""ZeRO-0: every data-parallel rank holds all weights and all optimizer state; gradients are averaged, fp32 only.

DeepSpeed hands the raw optimizer back here: the gradient's norm, clipping and the skipping of steps that are not
finite, which its ZeRO optimizers bring along, are added.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from pretrain.parallel.engine import Shard
from pretrain.parallel.norms import clip_divisor, norms
from pretrain.parallel.plain import PlainEngine
from pretrain.parallel.shards import create_moments, set_step_count


class ReplicatedEngine(PlainEngine):
    """See PlainEngine. Of what all ranks hold alike, each owns an equal share: the concatenation of all parameters,
    cut into as many ranges as there are ranks."""

    def attach(self, deepspeed: Any) -> None:
        self.deepspeed = deepspeed
        self.before_update = []
        create_moments(deepspeed.optimizer)
        self._step = deepspeed.optimizer.step
        deepspeed.optimizer.step = self._step_if_finite
        deepspeed.clip_fp32_gradients = lambda: None  # it would come before the listeners

    @torch.no_grad()
    def _step_if_finite(self, *args: Any, **kwargs: Any) -> Any:
        for listener in self.before_update:
            listener()
        optimizer, clip = self.deepspeed.optimizer, self.deepspeed.gradient_clipping()
        gradients = [p.grad for p in self.layers.parameters() if p.grad is not None]
        norm = float(norms(gradients).norm())
        self.refusal = None
        admitted = self.admits(lambda: norm) and math.isfinite(norm)
        # These two DeepSpeed's engine reads from any of its optimizers.
        optimizer.overflow = not admitted
        optimizer._global_grad_norm = norm if admitted else math.inf
        if optimizer.overflow:
            return None
        if clip:
            torch._foreach_div_(gradients, clip_divisor(norm, clip))
        return self._step(*args, **kwargs)

    def owned_shards(self, replicas: bool = False) -> Iterator[Shard]:
        total = sum(parameter.numel() for parameter in self.layers.parameters())
        for name, parameter, start, stop in self._ranges(0, total) if replicas else self._share(self.rank):
            yield self._shard(name, parameter, start, stop)

    def _share(self, rank: int) -> Iterator[tuple[str, nn.Parameter, int, int]]:
        """What a rank owns: (name, parameter, first, end) of its elements."""
        total, size = sum(parameter.numel() for parameter in self.layers.parameters()), self.data_parallel_size
        return self._ranges(total * rank // size, total * (rank + 1) // size)

    def _ranges(self, first: int, last: int) -> Iterator[tuple[str, nn.Parameter, int, int]]:
        """Elements first..last-1 of all parameters in a row, parameter by parameter."""
        at = 0
        for name, parameter in self.layers.named_parameters():
            start, stop = max(first - at, 0), min(last - at, parameter.numel())
            at += parameter.numel()
            if start < stop:
                yield name, parameter, start, stop

    def _shard(self, name: str, parameter: nn.Parameter, start: int, stop: int) -> Shard:
        state = self.deepspeed.optimizer.state[parameter]

        def view(tensor: Tensor) -> Tensor:
            return tensor.detach().view(-1)[start:stop]

        return Shard(
            name=name,
            shape=tuple(parameter.shape),
            start=start,
            stop=stop,
            weight=view(parameter),
            exp_avg=view(state["exp_avg"]),
            exp_avg_sq=view(state["exp_avg_sq"]),
            gradient=partial(_gradient, parameter, start, stop),
        )

    def optimizer_step_count(self) -> int:
        return int(next(iter(self.deepspeed.optimizer.state.values()))["step"])  # the same for all

    def set_optimizer_step_count(self, steps: int) -> None:
        set_step_count(self.deepspeed.optimizer, steps)

    @torch.no_grad()
    def publish_weights(self) -> None:
        """Give every rank's own share to the others, so that all weights are alike again."""
        if self.data_parallel_size == 1:
            return
        for rank in range(self.data_parallel_size):
            views = [p.detach().view(-1)[start:stop] for _, p, start, stop in self._share(rank)]
            flat = torch.cat(views)
            dist.broadcast(flat, rank)
            torch._foreach_copy_(views, list(flat.split([view.numel() for view in views])))


def _gradient(parameter: nn.Parameter, start: int, stop: int) -> Tensor:
    assert parameter.grad is not None, "DeepSpeed gives zeros to those without"
    return parameter.grad.detach().reshape(-1)[start:stop]
