"""What the plain and the pipeline engine share: ZeRO's state, the learning rate, the result of a step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from pretrain.parallel.engine import Engine, Shard, StepResult
from pretrain.parallel.loss_scale import load_scaler_state, scaler_state
from pretrain.parallel.shards import create_moments, set_step_count, step_count, zero_shards
from pretrain.parallel.single_replica import simplify


class ZeroEngine(Engine):
    """An Engine over a DeepSpeed engine `deepspeed` whose optimizer is a ZeRO-1/2 or BF16 optimizer."""

    deepspeed: Any

    def attach(self, deepspeed: Any) -> None:
        """Take over a built DeepSpeed engine: moments exist from now on, listeners run before each update."""
        self.deepspeed = deepspeed
        self.before_update = []
        simplify(deepspeed.optimizer, self.data_parallel_size)
        create_moments(deepspeed.optimizer.optimizer)
        self.listen(deepspeed.optimizer)

    def listen(self, optimizer: Any) -> None:
        """Call the listeners before each step of a DeepSpeed optimizer, when its gradients are reduced."""
        step = optimizer.step

        def step_with_listeners(*args: Any, **kwargs: Any) -> Any:
            for listener in self.before_update:
                listener()
            return step(*args, **kwargs)

        optimizer.step = step_with_listeners

    def close(self) -> None:
        self.deepspeed.destroy()

    @property
    def device(self) -> torch.device:
        return self.deepspeed.device

    def set_lr(self, lr: float) -> None:
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = lr

    def result(self, loss: float, target_tokens: int, skipped_before: int) -> StepResult:
        norm = float(self.deepspeed.get_global_grad_norm())
        clip = self.deepspeed.gradient_clipping()
        # DeepSpeed divides by max(1, (norm + 1e-6) / clip).
        clipped = norm / max(1.0, (norm + 1e-6) / clip) if clip else norm
        skipped = self.deepspeed.skipped_steps > skipped_before
        return StepResult(loss, target_tokens, norm, clipped, skipped)

    def owned_shards(self, replicas: bool = False) -> Iterator[Shard]:
        return zero_shards(self.layers, self.deepspeed.optimizer, replicas)

    def optimizer_step_count(self) -> int:
        return step_count(self.deepspeed.optimizer.optimizer)

    def set_optimizer_step_count(self, steps: int) -> None:
        set_step_count(self.deepspeed.optimizer.optimizer, steps)

    def loss_scaler_state(self) -> dict[str, float]:
        return scaler_state(self._loss_scaler)

    def load_loss_scaler_state(self, state: dict[str, float]) -> None:
        load_scaler_state(self._loss_scaler, state)

    @property
    def _loss_scaler(self) -> Any:
        return getattr(self.deepspeed.optimizer, "loss_scaler", None)  # DeepSpeed's BF16 optimizer has none

    def publish_weights(self) -> None:
        self.deepspeed.optimizer.update_lp_params()
