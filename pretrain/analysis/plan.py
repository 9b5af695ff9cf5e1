"""What an experiment will take, before it runs: parameters, batch equation, stages, memory."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from pretrain.config.checks import BatchPlan
from pretrain.config.load import to_yaml
from pretrain.config.schema import Experiment
from pretrain.models.layers import ModelSpec
from pretrain.models.parameters import row_group
from pretrain.parallel.build import StageRow, stage_table

GIB = 2**30
SAVED_WIDTHS = 14
"""Tensors of the residual width that a layer keeps for its backward pass, roughly; the FFN's two come on top."""


@dataclass(frozen=True)
class Memory:
    """Estimated bytes of one process."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


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


def stage_memory(experiment: Experiment, spec: ModelSpec, plan: BatchPlan, row: StageRow, tokens: int) -> Memory:
    """Estimate for one process of a stage.

    Args:
        tokens: source and target positions of a sample.
    """
    layers = spec.layers[row.start : row.stop]
    shared = shared_parameters(spec)
    count = sum(layer_parameters(spec)[row.start : row.stop])
    count += sum(shared[key] for key in {layer.tie_key for layer in layers if layer.tie_key})
    own = count // plan.data_parallel_size
    width = 4 if experiment.train.precision == "fp32" else 2
    # Gradients: ZeRO-1 and 2 reduce whole gradients; half precision also accumulates in fp32.
    gradients = count * (width if width == 4 else width + 4)
    optimizer = own * 12  # fp32 masters and two moments
    return Memory(count * width, gradients, optimizer, _activations(experiment, spec, plan, row, tokens, width))


def _activations(
    experiment: Experiment, spec: ModelSpec, plan: BatchPlan, row: StageRow, tokens: int, width: int
) -> int:
    model, every = experiment.model, experiment.train.activation_checkpointing
    positions = experiment.batch.micro_batch_size * tokens / 2  # a layer sees one of the two sequences, on average
    per_layer = positions * (SAVED_WIDTHS * model.hidden_size + 2 * model.ffn_size) * width
    kept = row.stop - row.start
    alive = min(plan.micro_batches, plan.pipeline_stages - row.stage)  # 1F1B: micro-batches in flight
    if every:
        return int(alive * kept / every * positions * model.hidden_size * width + every * per_layer)
    return int(alive * kept * per_layer)


def plan_text(experiment: Experiment, spec: ModelSpec, plan: BatchPlan, tokens: int) -> str:
    """The experiment as resolved, and what it will take."""
    parts = parameters_by_part(spec)
    lines = [to_yaml(experiment).rstrip(), "", f"parameters  {sum(parts.values()):,}"]
    lines += [f"  {name:<24}{count:>16,}" for name, count in parts.items()]
    batch = experiment.batch
    lines += [
        "",
        f"batch       {batch.global_batch_size} samples a step = {batch.micro_batch_size} a micro-batch x "
        f"{plan.micro_batches} micro-batches x {plan.data_parallel_size} data-parallel processes; "
        f"{batch.global_batch_size * tokens:,} tokens",
        f"processes   {plan.world_size} = {plan.pipeline_stages} stages x {plan.data_parallel_size} data-parallel",
        "",
        f"{'stage':<7}{'layers':>8}{'cost':>8}  {'weights':>10}{'gradients':>11}{'optimizer':>11}"
        f"{'activations':>13}{'total':>9}  GiB a process, estimated",
    ]
    for row in stage_table(experiment, spec):
        memory = stage_memory(experiment, spec, plan, row, tokens)
        figures = [memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.total]
        cells = "".join(f"{f / GIB:>{w}.3f}" for f, w in zip(figures, (10, 11, 11, 13, 9), strict=True))
        span = f"{row.first} .. {row.last}"
        lines.append(f"{row.stage:<7}{row.stop - row.start:>8}{row.cost_share:>8.1%}  {cells}  {span}")
    return "\n".join(lines)
