"""What an experiment will take, before it runs: parameters, batch equation, stages, memory."""

from __future__ import annotations

from pretrain.analysis.plan_memory import GIB, PROCESS_BYTES, stage_memory
from pretrain.analysis.plan_model import Sizes, parameters_by_part, tokens_per_step, training_flops_per_token
from pretrain.config.checks import BatchPlan
from pretrain.config.load import to_yaml
from pretrain.config.schema import Experiment
from pretrain.models.layers import ModelSpec
from pretrain.parallel.build import stage_table


def plan_text(experiment: Experiment, spec: ModelSpec, plan: BatchPlan, sizes: Sizes) -> str:
    """The experiment as resolved, and what it will take."""
    batch = experiment.batch
    lines = [to_yaml(experiment).rstrip(), "", *model_lines(spec, sizes)]
    lines += [
        "",
        f"batch       {batch.global_batch_size} samples a step = {batch.micro_batch_size} a micro-batch x "
        f"{plan.micro_batches} micro-batches x {plan.data_parallel_size} data-parallel processes; "
        f"{tokens_per_step(batch.global_batch_size, sizes.tokens):,} tokens",
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
    host = max(memory.host for memory in memories)
    lines.append(
        f"main memory beside that: {PROCESS_BYTES / GIB:.2f} GiB for the process itself, before the model; "
        + (f"{host / GIB:.3f} GiB of offloaded state; " if host else "")
        + f"{save / GIB:.3f} GiB for the copy that a save writes"
    )
    return "\n".join(lines)


def model_lines(spec: ModelSpec, sizes: Sizes) -> list[str]:
    """Parameters by part, and FLOPs."""
    parts = parameters_by_part(spec)
    lines = [f"parameters  {sum(parts.values()):,}"]
    lines += [f"  {name:<24}{count:>16,}" for name, count in parts.items()]
    flops = training_flops_per_token(spec, sizes)
    lines.append(
        f"FLOPs       {flops / 1e9:,.3g} G a token in training, a third of it forward; with recomputation a third more"
    )
    return lines
