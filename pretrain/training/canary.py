"""Does this layout compute what one process computes? A small copy of the model takes two steps both ways.

DeepSpeed has had silent errors: in fp32, ZeRO-0 under a pipeline clips by the norm of one stage alone. The copy has the
experiment's design, objective, data, optimizer, precision and layout; depth, width and batch are cut.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import torch

from pretrain.config.checks import BatchPlan
from pretrain.config.schema import Experiment
from pretrain.data.loader import BatchLoader
from pretrain.data.samples import Samples
from pretrain.errors import CanaryFailed
from pretrain.models.layer_list import LayerList
from pretrain.models.layers import ModelSpec
from pretrain.objectives.cross_entropy import TokenLoss, count_targets
from pretrain.parallel import collectives
from pretrain.parallel.build import build_engine
from pretrain.parallel.engine import Batch
from pretrain.parallel.optimizer import adamw

STEPS = 2
"""The second step's loss tells of the first one's clipping and update."""
TRIES = 40
HEAD_SIZE, HEADS = 16, 2
TOLERANCE = {"fp32": (1e-4, 1e-4), "bf16": (1e-2, 5e-2), "fp16": (1e-2, 5e-2)}
"""Relative differences of losses and gradient norms that rounding explains. fp32 sums in another order: 1e-6 was seen;
bf16 against the fp32 reference: 1e-3 and 1e-2."""


class Step(NamedTuple):
    """What is compared."""

    loss: float
    grad_norm: float
    """Before clipping."""


def small_copy(experiment: Experiment, batch: BatchPlan) -> Experiment:
    """The experiment with two narrow heads, as many layers as the stages need, and one sample a micro-batch."""
    model, stages = experiment.model, batch.pipeline_stages
    depths = {key: min(getattr(model, key), max(2, stages)) for key in ("encoder_layers", "decoder_layers")}
    sizes = {"hidden_size": HEAD_SIZE * HEADS, "num_heads": HEADS, "ffn_size": 4 * HEAD_SIZE, **depths}
    micro_batches = min(batch.micro_batches, 2 * stages)
    return experiment.model_copy(
        update={
            "model": model.model_copy(update=sizes),
            "batch": experiment.batch.model_copy(
                update={"global_batch_size": micro_batches * batch.data_parallel_size, "micro_batch_size": 1}
            ),
        }
    )


def canary(
    experiment: Experiment,
    batch: BatchPlan,
    deepspeed_config: dict[str, Any],
    samples: Samples,
    spec_of: Callable[[Experiment], ModelSpec],
) -> list[Step]:
    """Take two steps in this layout and in one process and compare them. Collective.

    Args:
        experiment: the one to be trained.
        batch: its batch plan.
        deepspeed_config: complete.
        samples: training samples.
        spec_of: the model of an experiment, for these samples.

    Returns:
        The layout's steps.

    Raises:
        CanaryFailed: on every rank; they differ by more than rounding.
    """
    small = small_copy(experiment, batch)
    spec = spec_of(small)
    found = _in_layout(small, spec, _with_batch(deepspeed_config, small, batch), samples)
    expected = _in_one_process(small, spec, samples) if collectives.is_first() else []
    problem = _difference(found, expected, experiment.train.precision) if expected else ""
    if reason := collectives.first_text(problem):
        raise CanaryFailed(
            f"train.canary: on a small copy of the model {reason}; this layout cannot be trusted: change "
            "parallel.* or the DeepSpeed JSON (train.canary=false trains with it all the same)"
        )
    return found


def _with_batch(config: dict[str, Any], small: Experiment, batch: BatchPlan) -> dict[str, Any]:
    size = small.batch.global_batch_size
    config = copy.deepcopy(config)
    config["train_batch_size"] = size
    config["train_micro_batch_size_per_gpu"] = small.batch.micro_batch_size
    # Else ZeRO-3 would keep weights this small whole on every rank, and gather none.
    zero, key = config["zero_optimization"], "stage3_param_persistence_threshold"
    if key in zero:
        zero[key] = min(zero[key], 10 * small.model.hidden_size)
    config["gradient_accumulation_steps"] = size // (small.batch.micro_batch_size * batch.data_parallel_size)
    return config


def _batches(experiment: Experiment, samples: Samples, rank: int, size: int) -> list[list[Batch]]:
    batch = experiment.batch
    loader = BatchLoader(samples, experiment.train.seed, batch.global_batch_size, batch.micro_batch_size, rank, size)
    with closing(loader):
        return [loader.next() for _ in range(STEPS)]


def _in_layout(experiment: Experiment, spec: ModelSpec, config: dict[str, Any], samples: Samples) -> list[Step]:
    engine = build_engine(experiment, spec, config)
    try:
        found = []
        for batches in _batches(experiment, samples, engine.data_parallel_rank, engine.data_parallel_size):
            for _ in range(TRIES):
                result = engine.train_step(batches if engine.needs_data else [], experiment.optimizer.lr)
                if not result.skipped:  # fp16 first finds its loss scale
                    break
            found.append(Step(result.loss, result.grad_norm))
        return found
    finally:
        engine.close()


def _in_one_process(experiment: Experiment, spec: ModelSpec, samples: Samples) -> list[Step]:
    """Plain PyTorch in fp32 on the CPU: no engine, no process group."""
    layers = LayerList(spec, seed=experiment.train.seed)
    optimizer = adamw(layers, experiment.optimizer)
    loss_of, clip = TokenLoss(experiment.loss.label_smoothing, experiment.loss.z_loss), experiment.optimizer.clip_norm
    found = []
    for batches in _batches(experiment, samples, 0, 1):
        targets = max(sum(int(count_targets(batch["labels"])) for batch in batches), 1)
        loss = torch.zeros(())
        for batch in batches:
            (logits,) = layers(spec.state(batch))
            loss = loss + loss_of.sum(logits, batch["labels"]) / targets
        optimizer.zero_grad()
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(layers.parameters(), clip or math.inf))
        optimizer.step()
        found.append(Step(float(loss), norm))
    return found


def _difference(found: Sequence[Step], expected: Sequence[Step], precision: str) -> str:
    """The first difference beyond rounding, as a clause; empty if there is none."""
    tolerances = Step(*TOLERANCE[precision])
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=True), start=1):
        for name, a, b, tolerance in zip(("loss", "gradient norm"), ours, theirs, tolerances, strict=True):
            if not math.isclose(a, b, rel_tol=tolerance):
                return f"step {number} has {name} {a:.6g} in this layout and {b:.6g} in one process"
    return ""
