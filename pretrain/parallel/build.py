"""From a checked experiment to an engine: the one place where the layout is decided."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from pretrain.config.schema import Experiment
from pretrain.models.layer_list import LayerList
from pretrain.models.layers import ModelSpec
from pretrain.objectives.cross_entropy import TokenLoss
from pretrain.parallel.engine import Engine
from pretrain.parallel.masters import fill_masters
from pretrain.parallel.optimizer import adamw
from pretrain.parallel.partition import stage_bounds
from pretrain.parallel.process_group import accelerator


@dataclass(frozen=True)
class StageRow:
    """One line of the stage table: layers start..stop-1 and their share of the cost."""

    stage: int
    start: int
    stop: int
    first: str
    last: str
    cost_share: float


CPU_BRANCH_FLOPS = 1e7
"""Fixed time of one sublayer's forward on a CPU core, in FLOPs it could have done meanwhile.

Measured: 0.32 ms a sublayer forward and backward, at 90 GFLOP/s, of which the forward is a third. On GPUs nothing has
been measured yet, and FLOPs alone decide.
"""


def layer_costs(experiment: Experiment, spec: ModelSpec) -> list[float]:
    """What one forward pass of a micro-batch costs in each layer, in FLOPs."""
    fixed = CPU_BRANCH_FLOPS if accelerator() == "cpu" else 0.0
    return [experiment.batch.micro_batch_size * layer.cost + layer.branches * fixed for layer in spec.layers]


def stage_table(experiment: Experiment, spec: ModelSpec) -> list[StageRow]:
    """How the layers fall to the stages."""
    stages = experiment.parallel.pipeline_stages
    costs = layer_costs(experiment, spec)
    # Every stage holds a block: what comes before the first and after the last stays with it. A stage of the head or
    # the embeddings alone would have fewer parameter groups than the others, and DeepSpeed, which reduces the gradient
    # norm once a group, would hang.
    blocks = [i for i, layer in enumerate(spec.layers) if ".layers." in layer.name]
    first, last = blocks[0], blocks[-1]
    merged = [sum(costs[: first + 1]), *costs[first + 1 : last], sum(costs[last:])]
    inner = stage_bounds(merged, stages, [cut - first for cut in spec.preferred_cuts])[1:-1]
    bounds = [0, *(bound + first for bound in inner), len(costs)]
    rows = []
    for stage, (a, b) in enumerate(itertools.pairwise(bounds)):
        share = sum(costs[a:b]) / sum(costs)
        rows.append(StageRow(stage, a, b, spec.layers[a].name, spec.layers[b - 1].name, share))
    return rows


def build_engine(
    experiment: Experiment, spec: ModelSpec, deepspeed_config: dict[str, Any], weights_follow: bool = False
) -> Engine:
    """Build this rank's layers, initialise them, and wrap them.

    Args:
        experiment: checked.
        spec: the model.
        deepspeed_config: complete.
        weights_follow: a checkpoint fills the weights next, so initialising them would be wasted time.
    """
    # In half precision DeepSpeed would round what is initialised here: the masters are filled afterwards.
    exact = experiment.train.precision == "fp32"
    seed = experiment.train.seed if exact and not weights_follow else None
    build: Callable[..., LayerList] = partial(
        LayerList, spec, seed=seed, checkpoint_every=experiment.train.activation_checkpointing
    )
    optimizer = partial(adamw, config=experiment.optimizer)
    loss = TokenLoss(experiment.loss.label_smoothing, experiment.loss.z_loss)
    engine: Engine
    if experiment.parallel.pipeline_stages == 1:
        from pretrain.parallel.plain import PlainEngine

        layers = build()
        if accelerator() == "cuda":
            layers = layers.to(torch.device("cuda", torch.cuda.current_device()))
        engine = PlainEngine(spec, layers, optimizer(layers), deepspeed_config, loss)
    else:
        from pretrain.parallel.pipeline import PipelineEngine

        bounds = [0, *(row.stop for row in stage_table(experiment, spec))]
        engine = PipelineEngine(spec, bounds, build, optimizer, deepspeed_config, loss)
    if not exact and not weights_follow:
        fill_masters(engine, spec, experiment.train.seed)
    return engine
