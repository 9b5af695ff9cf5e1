"""The engine without a pipeline: every rank holds all layers, ZeRO-1 or 2 shards the optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.models.layer_list import LayerList
from pretrain.models.layers import ModelSpec, State
from pretrain.objectives.cross_entropy import TokenLoss, count_targets
from pretrain.parallel import collectives
from pretrain.parallel.engine import Batch, StepResult
from pretrain.parallel.zero_engine import ZeroEngine


class _Module(nn.Module):
    """Gives DeepSpeed a module whose forward takes the state as one argument."""

    def __init__(self, layers: LayerList):
        super().__init__()
        self.layers = layers

    def forward(self, state: State) -> State:
        return self.layers(state)


class PlainEngine(ZeroEngine):
    """Gradient accumulation over micro-batches through DeepSpeedEngine's forward, backward and step.

    Args:
        spec: the model.
        layers: all of its layers, built and initialised.
        optimizer: over the layers' parameters.
        config: the complete DeepSpeed configuration.
        loss: what training minimises.
    """

    stage, num_stages = 0, 1

    def __init__(
        self,
        spec: ModelSpec,
        layers: LayerList,
        optimizer: torch.optim.Optimizer,
        config: dict[str, Any],
        loss: TokenLoss,
    ):
        import deepspeed

        self.spec = spec
        self.loss = loss
        self.layers = layers
        engine, *_ = deepspeed.initialize(
            model=_Module(layers), optimizer=optimizer, config=config, dist_init_required=False
        )
        self.rank = self.data_parallel_rank = collectives.rank()
        self.data_parallel_size = collectives.world_size()
        self._modules = list(engine.modules())
        self.attach(engine)

    def _set_mode(self, training: bool) -> None:
        """nn.Module.train, without the walk through the whole tree in every step."""
        if self.deepspeed.training != training:
            for module in self._modules:
                vars(module)["training"] = training  # what Module's own __setattr__ comes to

    def _summed_loss(self, batch: Batch, loss: TokenLoss) -> Tensor:
        batch = {key: tensor.to(self.device, non_blocking=True) for key, tensor in batch.items()}
        (logits,) = self.deepspeed(self.spec.state(batch))
        return loss.sum(logits, batch["labels"])

    def train_step(self, micro_batches: Sequence[Batch], lr: float) -> StepResult:
        self._set_mode(training=True)
        self.set_lr(lr)
        skipped_before = self.deepspeed.skipped_steps
        targets = sum(int(count_targets(batch["labels"])) for batch in micro_batches)
        targets = int(collectives.sum_over(torch.tensor(targets)).item())
        # DeepSpeed averages over micro-batches and ranks; the loss is a sum over the global batch's tokens / count.
        scale = len(micro_batches) * self.data_parallel_size / max(targets, 1)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        self._loss_sum, self._targets = total, max(targets, 1)
        for batch in micro_batches:
            loss = self._summed_loss(batch, self.loss)
            total += loss.detach()
            self.deepspeed.backward(loss * scale)
            self.deepspeed.step()
        loss_sum = float(collectives.sum_over(total.cpu()))
        return self.result(loss_sum / max(targets, 1), targets, skipped_before)

    def loss_share(self) -> float:
        return float(self._loss_sum) / self._targets

    @torch.no_grad()
    def evaluate(self, micro_batches: Sequence[Batch]) -> tuple[float, int]:
        self._set_mode(training=False)
        totals = torch.zeros(2, dtype=torch.float64)
        for batch in micro_batches:
            totals += torch.tensor(
                [float(self._summed_loss(batch, TokenLoss())), float(count_targets(batch["labels"]))]
            )
        loss, count = collectives.sum_over(totals).tolist()
        return loss, int(count)
