"""What a layout takes of each process's memory: weights, gradients, optimizer, activations, logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pretrain.analysis.plan_model import Sizes, kept_elements, layer_parameters, shared_parameters, stack_of
from pretrain.config.checks import BatchPlan
from pretrain.config.deepspeed import bucket_elements
from pretrain.config.schema import Experiment
from pretrain.models.layers import ModelSpec
from pretrain.parallel.build import StageRow

GIB = 2**30
LOGIT_BYTES = {"fp32": 8, "bf16": 10, "fp16": 10}
"""A logit in the loss: itself and its probability in fp32, which becomes its gradient; in half precision its fp32 copy
as well (measured on a CPU: 8.1 and 10.1)."""
PROCESS_BYTES = 404_000_000
"""Main memory of a process that has imported everything, joined a group and opened its data, but built no model;
measured with torch 2.13 for CPU and DeepSpeed 0.19.8 on Linux. A third of it DeepSpeed imports with an engine."""


@dataclass(frozen=True)
class Layout:
    """How a model and its batch lie over processes."""

    stages: int
    data_parallel: int
    zero_stage: int
    offload: bool
    """The optimizer's state and its step are the host's."""
    micro_batch: int
    micro_batches: int
    checkpoint_every: int
    """Activations are kept every so many layers; 0 keeps all."""

    @classmethod
    def of(cls, experiment: Experiment, plan: BatchPlan) -> Layout:
        """That of a checked experiment."""
        return cls(
            stages=plan.pipeline_stages,
            data_parallel=plan.data_parallel_size,
            zero_stage=experiment.parallel.zero_stage,
            offload=experiment.parallel.offload_optimizer,
            micro_batch=experiment.batch.micro_batch_size,
            micro_batches=plan.micro_batches,
            checkpoint_every=experiment.train.activation_checkpointing,
        )


@dataclass(frozen=True)
class StageContent:
    """What a stage holds."""

    stage: int
    parameters: int
    encoder_layers: int
    decoder_layers: int
    has_head: bool


@dataclass(frozen=True)
class Memory:
    """Estimated bytes of one process."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    host: int
    """Of main memory, for state that is offloaded."""
    save: int
    """Of main memory, while a checkpoint is written."""

    @property
    def total(self) -> int:
        """Of the device, while training."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


class State(NamedTuple):
    """Bytes of weights and what belongs to them."""

    weights: int
    gradients: int
    optimizer: int
    host: int


def stage_contents(spec: ModelSpec, rows: Sequence[StageRow]) -> list[StageContent]:
    """What each row of a stage table holds."""
    counts, shared = layer_parameters(spec), shared_parameters(spec)
    contents = []
    for row in rows:
        layers = spec.layers[row.start : row.stop]
        ties = {layer.tie_key for layer in layers if layer.tie_key}
        stacks = [stack_of(layer.name) for layer in layers]
        parameters = sum(counts[row.start : row.stop]) + sum(shared[key] for key in ties)
        has_head = row.stop == len(spec.layers)
        contents.append(StageContent(row.stage, parameters, stacks.count("encoder"), stacks.count("decoder"), has_head))
    return contents


def stage_memory(experiment: Experiment, spec: ModelSpec, plan: BatchPlan, row: StageRow, sizes: Sizes) -> Memory:
    """Estimate for one process of a stage."""
    (content,) = stage_contents(spec, [row])
    return memory(experiment, content, Layout.of(experiment, plan), sizes)


def memory(experiment: Experiment, content: StageContent, layout: Layout, sizes: Sizes) -> Memory:
    """Estimate for one process of a stage under a layout, whatever the experiment's own is."""
    own = -(-content.parameters // layout.data_parallel)
    state = state_bytes(content.parameters, layout, experiment.train.precision, bucket_elements(experiment))
    logits = 0
    if content.has_head:
        each = LOGIT_BYTES[experiment.train.precision]
        logits = layout.micro_batch * (sizes.target or sizes.source) * sizes.vocabulary * each
    activations = _activations(experiment, content, layout, sizes)
    return Memory(state.weights, state.gradients, state.optimizer, activations, logits, host=state.host, save=12 * own)


def state_bytes(count: int, layout: Layout, precision: str, bucket: int) -> State:
    """Bytes of one process for `count` parameters of its stage.

    Args:
        count: parameters of the stage.
        layout: whose ZeRO stage, offload and data parallel degree count.
        precision: fp32, bf16 or fp16.
        bucket: elements of a reduction's buffer.
    """
    zero, width = layout.zero_stage, 4 if precision == "fp32" else 2
    own = count if zero == 0 else -(-count // layout.data_parallel)
    in_bucket = min(count, bucket)
    alone = layout.data_parallel == 1 and zero == 1 and not layout.offload
    gathered = min(count, 2 * bucket)  # a block in use (no larger than a bucket), and a bucket of those to come
    weights = width * (count if zero < 3 else own + gathered)
    gradients = width * (count if zero < 2 else in_bucket)  # as the backward pass leaves them
    optimizer = 12 * own  # fp32 masters and two moments
    if precision == "fp32" and (zero == 0 or alone):
        optimizer = 8 * own  # the weights are the masters
    if layout.offload:
        return State(weights, gradients, 0, optimizer + 8 * own)  # with the gradient, and a copy on its way
    if precision == "bf16" and zero == 1:
        gradients += 4 * count  # accumulated whole in fp32, by DeepSpeed's BF16 optimizer;
        gradients += 0 if alone else 4 * in_bucket  # and a bucket on its way
    elif zero == 0:
        gradients += 0 if layout.data_parallel == 1 else 4 * in_bucket
    else:
        if zero > 1:
            gradients += 4 * own  # accumulated in fp32, this process's share
        elif precision == "fp16":
            gradients += 4 * count
        gradients += max(4 * own, 4 * in_bucket if zero > 1 else 0)  # flattened by the update; or on its way
    return State(weights, gradients, optimizer, 0)


def _activations(experiment: Experiment, content: StageContent, layout: Layout, sizes: Sizes) -> int:
    """What the micro-batches in flight keep; with checkpointing, what one segment of layers keeps while recomputed."""
    model, every = experiment.model, layout.checkpoint_every
    width = 4 if experiment.train.precision == "fp32" else 2
    layers = {True: content.encoder_layers, False: content.decoder_layers}
    kept = {encodes: kept_elements(model, encodes, sizes) for encodes, count in layers.items() if count}
    alive = min(layout.micro_batches, layout.stages - content.stage)  # 1F1B
    if not every:
        return int(layout.micro_batch * width * alive * sum(layers[encodes] * kept[encodes] for encodes in kept))
    positions = layers[True] * sizes.source + layers[False] * sizes.target
    memory_positions = sizes.source if layers[False] else 0  # the encoder's output: one for all decoder layers
    entering = model.hidden_size * (positions / every + memory_positions)
    segment = min(every, sum(layers.values())) * max(kept.values(), default=0)
    return int(layout.micro_batch * width * (alive * entering + segment))
