"""The step as a PyTorch user writes it, over the product's own layers: what the engine is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pretrain.analysis.bench_sides import Rival, Seen, Turns
from pretrain.config.schema import Experiment
from pretrain.data.loader import Batch
from pretrain.models.layer_list import LayerList
from pretrain.models.layers import ModelSpec
from pretrain.objectives.cross_entropy import TokenLoss, count_targets
from pretrain.parallel import collectives
from pretrain.parallel.optimizer import adamw

ADAMW: dict[str, dict[str, Any]] = {"default": {}, "foreach": {"foreach": True}, "fused": {"fused": True}}
"""How torch.optim.AdamW goes through its parameters; torch's default is a loop on a CPU, foreach on a GPU."""


@dataclass(frozen=True)
class PlainResult:
    """One step: loss per target token of the global batch, gradient norm before clipping."""

    loss: float
    grad_norm: float


class PlainLoop:
    """Gradient accumulation, clip_grad_norm_ and torch.optim.AdamW with the experiment's parameter groups.

    Args:
        experiment: checked; fp32, or bf16 (then under torch.autocast).
        spec: the model; initialised as the engine initialises it.
        device: where to run.
        optimizer: a key of ADAMW.
    """

    def __init__(self, experiment: Experiment, spec: ModelSpec, device: torch.device, optimizer: str = "default"):
        train, config = experiment.train, experiment.optimizer
        self.spec, self.device, self.clip_norm = spec, device, config.clip_norm
        self.loss = TokenLoss(experiment.loss.label_smoothing, experiment.loss.z_loss)
        self.layers = LayerList(spec, seed=train.seed, checkpoint_every=train.activation_checkpointing).to(device)
        self.bf16 = train.precision == "bf16"
        groups = [
            {"params": group["params"], "weight_decay": group["weight_decay"]}
            for group in adamw(self.layers, config).param_groups
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, **ADAMW[optimizer])

    def step(self, micro_batches: Sequence[Batch], lr: float) -> PlainResult:
        """Forward, backward and update on all micro-batches of one global batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        targets = sum(int(count_targets(batch["labels"])) for batch in micro_batches)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in micro_batches:
            batch = {key: tensor.to(self.device, non_blocking=True) for key, tensor in batch.items()}
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                (logits,) = self.layers(self.spec.state(batch))
            loss = self.loss.sum(logits, batch["labels"]) / targets
            loss.backward()
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.layers.parameters(), self.clip_norm or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return PlainResult(float(total), float(norm))


class PlainRival(Rival):
    """The plain loop in rank 0's process, with the threads of all ranks, while the others wait."""

    title = "the plain loop"

    def run(self, turns: Turns) -> None:
        plain, start_up = self.clock.alone(
            lambda: PlainLoop(self.work.experiment, self.work.spec, self.clock.device, self.options.optimizer)
        )
        turns.rival.start_up_seconds = start_up.seconds

        def step() -> PlainResult | None:
            return plain.step(turns.batches[turns.next], turns.rates[turns.next]) if plain else None

        while turns.reach_rival():
            result, spent = self.clock.alone(step)
            own = [result.loss, result.grad_norm] if result else [0.0, 0.0]
            loss, grad_norm = collectives.sum_over(torch.tensor(own, dtype=torch.float64)).tolist()
            turns.rival_took(Seen(loss, grad_norm, spent))

    def facts(self) -> dict[str, Any]:
        return {"optimizer": f"AdamW {self.options.optimizer}"}
