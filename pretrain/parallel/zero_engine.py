"""What the plain and the pipeline engine share: ZeRO's state, the learning rate, the result of a step."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch

from pretrain.parallel import collectives
from pretrain.parallel.engine import NOT_FINITE, Engine, Refusal, Shard, StepResult
from pretrain.parallel.loss_scale import load_scaler_state, scaler_state
from pretrain.parallel.norms import clip_divisor
from pretrain.parallel.refusal import judge_norm
from pretrain.parallel.shards import create_moments, set_step_count, step_count, zero_shards
from pretrain.parallel.single_replica import simplify


class ZeroEngine(Engine):
    """An Engine over a DeepSpeed engine `deepspeed` whose optimizer is a ZeRO-1/2 or BF16 optimizer."""

    deepspeed: Any
    refusal: Refusal | None = None
    """The judge's word on the newest step."""
    judged_norm = 0.0
    """The gradient norm that it was about; DeepSpeed forgets that of a step that it throws away."""

    def attach(self, deepspeed: Any) -> None:
        """Take over a built DeepSpeed engine: moments exist from now on, listeners run before each update."""
        self.deepspeed = deepspeed
        self.before_update = []
        simplify(deepspeed.optimizer, self.data_parallel_size)
        create_moments(deepspeed.optimizer.optimizer)
        self.listen(deepspeed.optimizer)

    def listen(self, optimizer: Any) -> None:
        """Call the listeners, then the judge, before each step of a DeepSpeed optimizer, its gradients reduced."""
        step = optimizer.step
        judge_norm(optimizer, self.admits)

        def step_with_listeners(*args: Any, **kwargs: Any) -> Any:
            for listener in self.before_update:
                listener()
            self.refusal, scaler = None, self.loss_scaler_state()
            returned = step(*args, **kwargs)
            if self.refusal:
                self.load_loss_scaler_state(scaler)  # a refused step is no overflow
            return returned

        optimizer.step = step_with_listeners

    def admits(self, norm_of: Callable[[], float]) -> bool:
        """Whether a step of this gradient norm may be made. Collective where there is a judge."""
        if self.judge is None:
            return True
        norm = norm_of()
        if not 0 <= norm < math.inf:  # DeepSpeed's word for "not finite" is inf or -1: no step follows anyway
            return True
        figures = torch.tensor([self.loss_share(), norm if collectives.is_first() else 0.0], dtype=torch.float64)
        loss, self.judged_norm = collectives.sum_over(figures).tolist()
        self.refusal = self.judge(loss, self.judged_norm)
        return self.refusal is None

    @abstractmethod
    def loss_share(self) -> float:
        """This rank's part of the step's loss, once all of its forward passes are done; they add up over all ranks."""

    def close(self) -> None:
        self.deepspeed.destroy()

    @property
    def device(self) -> torch.device:
        return self.deepspeed.device

    @property
    def backward_scale(self) -> float:
        # Divided by the micro-batches already: DeepSpeed does so before it goes backwards.
        return self.data_parallel_size * float(getattr(self._loss_scaler, "cur_scale", 1.0))

    def set_lr(self, lr: float) -> None:
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = lr

    def result(self, loss: float, target_tokens: int, skipped_before: int) -> StepResult:
        norm = self.judged_norm if self.refusal else float(self.deepspeed.get_global_grad_norm())
        clipped = norm / clip_divisor(norm, self.deepspeed.gradient_clipping())
        skipped = self.deepspeed.skipped_steps > skipped_before
        return StepResult(loss, target_tokens, norm, clipped, (self.refusal or NOT_FINITE) if skipped else None)

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
