"""What an experiment will take, before it runs: parameters, batch equation, stages, memory."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch

from pretrain.config.checks import BatchPlan
from pretrain.config.deepspeed import bucket_elements
from pretrain.config.load import to_yaml
from pretrain.config.schema import Experiment, ModelSection
from pretrain.models.layers import ModelSpec
from pretrain.models.parameters import row_group
from pretrain.parallel.build import StageRow, stage_table

GIB = 2**30
LAYER_WIDTHS, CROSS_WIDTHS = 8, 4
"""Tensors of the residual width that a layer of one attention and one FFN keeps for its backward pass (inputs of norms
and projections; queries, keys, values), and what attention to the encoder adds, keys and values of its output apart."""
FFN_TENSORS = {"relu": 1, "swiglu": 4, "geglu": 4}
"""Tensors of the FFN's inner width that are kept, by activation; 2 for all others."""
LOGIT_BYTES = 12
"""A logit in the loss: its log-probability in fp32 and, on the way back, two gradients (measured: 12.1)."""
PROCESS_BYTES = 280_000_000
"""Main memory of a process that has imported everything, joined a group and opened its data, but built no model;
measured with torch 2.13 for CPU and DeepSpeed 0.19.8 on Linux."""


class Sizes(NamedTuple):
    """Positions of a sample in encoder and decoder (0 where there is no such stack), and rows of the embedding."""

    source: int
    target: int
    vocabulary: int

    @property
    def tokens(self) -> int:
        return self.source + self.target


@dataclass(frozen=True)
class Memory:
    """Estimated bytes of one process."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    save: int
    """Of main memory, while a checkpoint is written."""

    @property
    def total(self) -> int:
        """Of the device, while training."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


@functools.lru_cache(maxsize=4)
def layer_parameters(spec: ModelSpec) -> tuple[int, ...]:
    """Parameters of each layer, shared modules left out; built one by one on the meta device."""
    with torch.device("meta"):
        return tuple(sum(p.numel() for p in layer.factory().parameters()) for layer in spec.layers)


def shared_parameters(spec: ModelSpec) -> dict[str, int]:
    """Parameters of each shared module, counted once."""
    with torch.device("meta"):
        return {key: sum(p.numel() for p in build().parameters()) for key, build in spec.shared.items()}


def total_parameters(spec: ModelSpec) -> int:
    return sum(layer_parameters(spec)) + sum(shared_parameters(spec).values())


def parameters_by_part(spec: ModelSpec) -> dict[str, int]:
    """Part (a stack, an embedding, a final norm) -> parameters, in order of execution."""
    parts = dict(shared_parameters(spec))
    for layer, count in zip(spec.layers, layer_parameters(spec), strict=True):
        group, _ = row_group(layer.name + ".x")
        name = f"{group} layers" if ".layers." in layer.name else group
        parts[name] = parts.get(name, 0) + count
    return {name: count for name, count in parts.items() if count}


def stage_memory(experiment: Experiment, spec: ModelSpec, plan: BatchPlan, row: StageRow, sizes: Sizes) -> Memory:
    """Estimate for one process of a stage."""
    layers = spec.layers[row.start : row.stop]
    shared = shared_parameters(spec)
    count = sum(layer_parameters(spec)[row.start : row.stop])
    count += sum(shared[key] for key in {layer.tie_key for layer in layers if layer.tie_key})
    own = count // plan.data_parallel_size
    width = 4 if experiment.train.precision == "fp32" else 2
    gradients = count * (width if width == 4 else width + 4)  # whole ones; half precision also accumulates in fp32
    if experiment.train.precision == "bf16" and experiment.parallel.zero_stage == 1:
        gradients += 4 * min(count, bucket_elements(experiment))  # DeepSpeed's BF16 optimizer: a bucket on its way
    else:
        gradients += 4 * own  # its ZeRO optimizer: the update flattens this process's share once more
    state = own * 12  # fp32 masters and two moments; a save copies them
    logits = 0
    if row.stop == len(spec.layers):
        logits = experiment.batch.micro_batch_size * (sizes.target or sizes.source) * sizes.vocabulary * LOGIT_BYTES
    activations = _activations(experiment, spec, plan, row, sizes, width)
    return Memory(count * width, gradients, state, activations, logits, save=state)


def _activations(
    experiment: Experiment, spec: ModelSpec, plan: BatchPlan, row: StageRow, sizes: Sizes, width: int
) -> int:
    every, rows = experiment.train.activation_checkpointing, experiment.batch.micro_batch_size * width
    layers = [layer.name for layer in spec.layers[row.start : row.stop] if ".layers." in layer.name]
    kept = [rows * _kept_elements(experiment.model, name.startswith("encoder"), sizes) for name in layers]
    alive = min(plan.micro_batches, plan.pipeline_stages - row.stage)  # 1F1B: micro-batches in flight
    if every:
        between = rows * max(sizes.source, sizes.target) * experiment.model.hidden_size * len(layers) / every
        return int(alive * between + every * max(kept, default=0))
    return int(alive * sum(kept))


def _kept_elements(model: ModelSection, encodes: bool, sizes: Sizes) -> float:
    """What a layer keeps of one sample for its backward pass, roughly."""
    positions = sizes.source if encodes else sizes.target
    dropout = 1 if model.dropout else 0
    widths: float = LAYER_WIDTHS + 2 * dropout
    if not encodes and sizes.source:
        widths += CROSS_WIDTHS + dropout + 2 * sizes.source / positions
    return positions * (widths * model.hidden_size + FFN_TENSORS.get(model.activation, 2) * model.ffn_size)


def plan_text(experiment: Experiment, spec: ModelSpec, plan: BatchPlan, sizes: Sizes) -> str:
    """The experiment as resolved, and what it will take."""
    parts = parameters_by_part(spec)
    lines = [to_yaml(experiment).rstrip(), "", f"parameters  {sum(parts.values()):,}"]
    lines += [f"  {name:<24}{count:>16,}" for name, count in parts.items()]
    batch = experiment.batch
    lines += [
        "",
        f"batch       {batch.global_batch_size} samples a step = {batch.micro_batch_size} a micro-batch x "
        f"{plan.micro_batches} micro-batches x {plan.data_parallel_size} data-parallel processes; "
        f"{batch.global_batch_size * sizes.tokens:,} tokens",
        f"processes   {plan.world_size} = {plan.pipeline_stages} stages x {plan.data_parallel_size} data-parallel",
        "",
        f"{'stage':<7}{'layers':>8}{'cost':>8}  {'weights':>10}{'gradients':>11}{'optimizer':>11}"
        f"{'activations':>13}{'logits':>9}{'total':>9}  GiB a process, estimated",
    ]
    rows = stage_table(experiment, spec)
    memories = [stage_memory(experiment, spec, plan, row, sizes) for row in rows]
    for row, memory in zip(rows, memories, strict=True):
        parts_of_it = [memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.logits]
        figures = [*parts_of_it, memory.total]
        cells = "".join(f"{f / GIB:>{w}.3f}" for f, w in zip(figures, (10, 11, 11, 13, 9, 9), strict=True))
        span = f"{row.first} .. {row.last}"
        lines.append(f"{row.stage:<7}{row.stop - row.start:>8}{row.cost_share:>8.1%}  {cells}  {span}")
    save = max(memory.save for memory in memories)
    lines.append(
        f"main memory beside that: {PROCESS_BYTES / GIB:.2f} GiB for the process itself, before the model; up to "
        f"{save / GIB:.3f} GiB for a moment at each save"
    )
    return "\n".join(lines)
