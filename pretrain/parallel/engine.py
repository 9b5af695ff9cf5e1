"""The one interface over DeepSpeed's engines. Loop, checkpoint and monitors know nothing beyond it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from pretrain.models.layer_list import LayerList

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Refusal:
    """Why a step must not be made, and the figures that say so."""

    reason: str
    figures: dict[str, float] = field(default_factory=dict)


NOT_FINITE = Refusal("gradient not finite")

Judge = Callable[[float, float], Refusal | None]
"""judge(loss, gradient norm before clipping) of a step that is about to be made -> why it must not be, or None."""


@dataclass(frozen=True)
class StepResult:
    """One optimizer step.

    loss is the sum over the target tokens of the global batch divided by their count; grad_norm is the L2 norm of
    the whole gradient before clipping, grad_norm_clipped after. A skipped step (gradient not finite, or refused by the
    judge) left weights and optimizer state as they were.
    """

    loss: float
    target_tokens: int
    grad_norm: float
    grad_norm_clipped: float
    refusal: Refusal | None
    """Why the step was not made; None if it was."""

    @property
    def skipped(self) -> bool:
        return self.refusal is not None

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


@dataclass(frozen=True)
class Shard:
    """A flat range of one parameter that this rank owns. All tensors are views: writing changes the training.

    Elements [start, stop) of the parameter `name` of global `shape`, flattened in row-major order.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    weight: Tensor
    """fp32 master weights [stop - start]"""
    exp_avg: Tensor
    """Adam's first moment [stop - start], fp32"""
    exp_avg_sq: Tensor
    """Adam's second moment [stop - start], fp32"""
    gradient: Callable[[], Tensor]
    """The reduced, unclipped gradient [stop - start]; only inside a `before_update` listener."""


class Engine(ABC):
    """A model laid out over processes, with its optimizer."""

    rank: int
    stage: int
    """This rank's pipeline stage."""
    num_stages: int
    data_parallel_rank: int
    data_parallel_size: int
    layers: LayerList
    """The layers that this rank holds."""
    before_update: list[Callable[[], None]]
    """Called between the reduction of the gradients and the optimizer's step, on every rank."""
    judge: Judge | None = None
    """Asked there about every step whose gradient is finite, on every rank, with the same figures: a judge that goes
    by nothing but what it has been asked decides the same everywhere. None costs nothing."""

    @property
    @abstractmethod
    def backward_scale(self) -> float:
        """What is propagated backwards in the next step: so many times the gradient of the global batch's mean loss.

        Ranks average their gradients afterwards, so each one's part comes times their number; fp16 has its loss scale.
        """

    @property
    def needs_data(self) -> bool:
        """Whether this rank reads micro-batches: the first stage (inputs) and the last (labels)."""
        return self.stage in (0, self.num_stages - 1)

    @abstractmethod
    def train_step(self, micro_batches: Sequence[Batch], lr: float) -> StepResult:
        """Forward, backward and update on this rank's micro-batches of one global batch.

        Args:
            micro_batches: the same number on every rank; empty where `needs_data` is False.
            lr: learning rate of this step.
        """

    @abstractmethod
    def evaluate(self, micro_batches: Sequence[Batch]) -> tuple[float, int]:
        """(summed cross-entropy in nats, target tokens) over all ranks' micro-batches, without dropout."""

    @abstractmethod
    def owned_shards(self, replicas: bool = False) -> Iterator[Shard]:
        """What this rank owns of weights and optimizer state, in the order of the model's layers.

        Args:
            replicas: also the copies of tied parameters that another stage owns (a load must fill them too).
        """

    @abstractmethod
    def optimizer_step_count(self) -> int:
        """Updates that the optimizer has made; Adam's bias correction depends on it."""

    @abstractmethod
    def set_optimizer_step_count(self, steps: int) -> None: ...

    @abstractmethod
    def loss_scaler_state(self) -> dict[str, float]:
        """What a dynamic loss scale (fp16) must know to go on, the same on every rank; empty where there is none."""

    @abstractmethod
    def load_loss_scaler_state(self, state: dict[str, float]) -> None:
        """Put it back; an empty state, or one where the scale is fixed, changes nothing."""

    def close(self) -> None:  # noqa: B027 (most have nothing to let go of)
        """Let go of the model and its state; the engine can be used no more."""

    @abstractmethod
    def publish_weights(self) -> None:
        """After writing into shards' weights: make the forward pass use them, on every rank."""
