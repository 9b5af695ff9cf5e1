"""What usually helps against each kind of trouble; what the experiment does already is not advised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pretrain.config.schema import Experiment


class Advice(NamedTuple):
    """One thing to do."""

    text: str
    followed: Callable[[Experiment], bool] = lambda experiment: False
    """Whether the experiment does so already."""


Cure = tuple[Advice, ...]


def advised(cure: Cure, experiment: Experiment) -> str:
    """The advice that is left for this experiment, in one line."""
    return "; ".join(advice.text for advice in cure if not advice.followed(experiment))


def _kind(choice: Any) -> str:
    """Which variant an experiment has chosen."""
    return choice.kind


def _block(*kinds: str) -> Callable[[Experiment], bool]:
    return lambda experiment: _kind(experiment.model.block) in kinds


def _decays_gains(experiment: Experiment) -> bool:
    return experiment.optimizer.weight_decay > 0 and "gains" not in experiment.optimizer.no_decay


SLOWER = Advice("a lower optimizer.lr or a longer schedule.warmup_steps helps")

ATTENTION = (Advice("model.qk_norm=true bounds the logits", lambda e: bool(e.model.qk_norm)), SLOWER)
DEPTH = (
    Advice("DeepNorm (model.block.kind=deepnorm) keeps it even over depth", _block("deepnorm", "deepnorm_sqrt")),
    Advice("a longer schedule.warmup_steps, a larger batch.global_batch_size or a lower optimizer.lr helps"),
)
SMOOTHING = (
    Advice("a block that keeps more of its skip (pre_ln, deepnorm) helps", _block("pre_ln", "deepnorm")),
    Advice("a lower optimizer.lr or longer training helps"),
)
SOURCE = (
    Advice("a lower optimizer.lr, a longer schedule.warmup_steps or longer training (train.max_steps) helps"),
    Advice(
        "an objective that cannot be solved without the source (bart_denoising, translation) helps",
        lambda e: _kind(e.objective) in ("bart_denoising", "translation"),
    ),
)
GRADIENT = (
    Advice("a lower optimizer.lr or a larger batch.global_batch_size helps"),
    Advice(
        "where it begins in the embedding, model.embedding_gradient_shrink=0.1 helps",
        lambda e: e.model.embedding_gradient_shrink < 1,
    ),
    Advice("policy.on_outlier=[skip] leaves such steps out", lambda e: "skip" in e.policy.on_outlier),
)
NO_GRADIENT = (Advice("look for a branch whose scalar is 0, a dead activation, or a loss that does not depend on it"),)
STEP = (SLOWER,)
SECOND_MOMENT = (
    Advice("a smaller second value of optimizer.betas (0.95) helps", lambda e: e.optimizer.betas[1] <= 0.95),
    Advice("a lower optimizer.lr or a smaller optimizer.clip_norm helps"),
)
GAINS = (
    Advice("a lower optimizer.lr helps"),
    Advice("weight decay on gains (optimizer.no_decay without gains) helps", _decays_gains),
)
SPIKE = (
    Advice("a lower optimizer.lr or a larger batch.global_batch_size helps"),
    Advice("policy.on_spike=[rollback] undoes it", lambda e: "rollback" in e.policy.on_spike),
)
SKIPPED = (Advice("a lower optimizer.lr or a longer schedule.warmup_steps helps, or a look at those samples"),)
NOT_FINITE = (
    Advice("a lower optimizer.lr, a longer schedule.warmup_steps or a smaller optimizer.clip_norm helps"),
    Advice("policy.on_not_finite=[rollback] goes back by itself", lambda e: "rollback" in e.policy.on_not_finite),
)
BROKEN = (
    Advice(
        "go back to a checkpoint from before, with a lower optimizer.lr or without the samples that led to it "
        "(data.skip_ranges)"
    ),
    Advice("policy.on_alarm=[rollback] does that", lambda e: "rollback" in e.policy.on_alarm),
)
