"""From a checked experiment to an engine: the one place where the layout is decided."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from pretrain.config.schema import Experiment
from pretrain.models.layer_list import LayerList
from pretrain.models.layers import ModelSpec
from pretrain.objectives.cross_entropy import TokenLoss
from pretrain.parallel.engine import Engine
from pretrain.parallel.masters import fill_masters
from pretrain.parallel.optimizer import adamw
from pretrain.parallel.partition import cuts_between, stage_bounds
from pretrain.parallel.process_group import accelerator

if TYPE_CHECKING:
    from pretrain.parallel.plain import PlainEngine


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


def layer_costs(experiment: Experiment, spec: ModelSpec, device: str | None = None) -> list[float]:
    """What one forward pass of a micro-batch costs in each layer, in FLOPs; on this machine's device by default."""
    fixed = CPU_BRANCH_FLOPS if (device or accelerator()) == "cpu" else 0.0
    # Embeddings, norms and the head have no sublayer, but take that time as well.
    return [experiment.batch.micro_batch_size * layer.cost + max(layer.branches, 1) * fixed for layer in spec.layers]


def stage_table(experiment: Experiment, spec: ModelSpec, device: str | None = None) -> list[StageRow]:
    """How the layers fall to the stages, on "cpu" or "cuda"; by default what this machine computes on."""
    stages = experiment.parallel.pipeline_stages
    costs = layer_costs(experiment, spec, device)
    # Every stage holds a block: one of the head or the embeddings alone would have fewer parameter groups than the
    # others, and DeepSpeed, which reduces the gradient norm once a group, would hang.
    blocks = [".layers." in layer.name for layer in spec.layers]
    cuts = [0, *cuts_between(blocks, spec.preferred_cuts), len(costs)]
    units = [sum(costs[a:b]) for a, b in itertools.pairwise(cuts)]
    preferred = [cuts.index(cut) for cut in spec.preferred_cuts if cut in cuts]
    bounds = [cuts[bound] for bound in stage_bounds(units, stages, preferred)]
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
        plain, build = _without_pipeline(experiment, deepspeed_config, build)
        layers = build()
        engine = plain(spec, layers, optimizer(layers), deepspeed_config, loss)
    else:
        from pretrain.parallel.pipeline import PipelineEngine

        bounds = [0, *(row.stop for row in stage_table(experiment, spec))]
        engine = PipelineEngine(spec, bounds, build, optimizer, deepspeed_config, loss)
    if not exact and not weights_follow:
        fill_masters(engine, spec, experiment.train.seed)
    return engine


def _without_pipeline(
    experiment: Experiment, deepspeed_config: dict[str, Any], build: Callable[..., LayerList]
) -> tuple[type[PlainEngine], Callable[..., LayerList]]:
    """The engine of the ZeRO stage, and how its layers are built."""
    if experiment.parallel.zero_stage == 3:
        from pretrain.parallel.partitioned import PartitionedEngine, partitioned_layers

        return PartitionedEngine, partial(partitioned_layers, build, deepspeed_config, experiment.train.precision)
    from pretrain.parallel.plain import PlainEngine
    from pretrain.parallel.replicated import ReplicatedEngine

    def on_device() -> LayerList:
        layers = build()
        return layers.to(torch.device("cuda", torch.cuda.current_device())) if accelerator() == "cuda" else layers

    return ReplicatedEngine if experiment.parallel.zero_stage == 0 else PlainEngine, on_device
