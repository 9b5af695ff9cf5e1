"""The memory estimate against what a training process of this machine really takes."""

from __future__ import annotations

import gc
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from pretrain.analysis.bench_machine import peak_resident_bytes, resident_bytes
from pretrain.analysis.bench_sides import Work
from pretrain.analysis.plan_memory import GIB, PROCESS_BYTES, Memory
from pretrain.config.schema import Experiment
from pretrain.data.loader import BatchLoader
from pretrain.launch.environment import RankEnvironment
from pretrain.models.layers import ModelSpec
from pretrain.models.registry import FAMILIES
from pretrain.parallel import process_group
from pretrain.parallel.build import build_engine

TOLERANCE = 0.2
"""Between measured and estimated memory, of the estimate."""


class Resident(NamedTuple):
    """Bytes of main memory."""

    before: int
    """With everything imported, the group joined and the batches made, but no model."""
    peak: int
    """The most at any time."""


def measured_memory(work: Work, environment: RankEnvironment, log: Path, steps: int) -> Resident:
    """Build the engine and train some steps, in a process that has no group yet and has built nothing large."""
    experiment, batch = work.experiment, work.experiment.batch
    process_group.start(environment, log)
    try:
        loader = BatchLoader(work.train, experiment.train.seed, batch.global_batch_size, batch.micro_batch_size, 0, 1)
        with closing(loader):
            batches = [loader.next() for _ in range(steps)]
        with process_group.quiet(log):
            small = _small(experiment)
            build_engine(small, _spec(small), work.deepspeed)  # DeepSpeed imports the rest of itself with an engine
            gc.collect()
            before = resident_bytes()
            engine = build_engine(experiment, work.spec, work.deepspeed)
            for micro_batches in batches:
                engine.train_step(micro_batches, experiment.optimizer.lr)
        return Resident(before, peak_resident_bytes())
    finally:
        process_group.end()


def _small(experiment: Experiment) -> Experiment:
    """One layer in each stack, 8 channels a head."""
    model = experiment.model
    depth = {f"{stack}_layers": 1 for stack in ("encoder", "decoder") if stack in model.family}
    narrow = {"hidden_size": 8 * model.num_heads, "ffn_size": 8}
    return experiment.model_copy(update={"model": model.model_copy(update=depth | narrow)})


def _spec(experiment: Experiment) -> ModelSpec:
    model = experiment.model
    source, target = (8 if stack in model.family else 0 for stack in ("encoder", "decoder"))
    return FAMILIES[model.family](model, 8, source, target)


def is_near(estimate: Memory, resident: Resident) -> bool:
    """Whether the estimate is as near as it promises to be for states of a GiB and more."""
    return abs((resident.peak - resident.before) / estimate.total - 1) <= TOLERANCE


def check_text(estimate: Memory, resident: Resident) -> str:
    """Estimate and measurement side by side."""
    state = estimate.weights + estimate.gradients + estimate.optimizer
    measured = resident.peak - resident.before
    near = "within" if is_near(estimate, resident) else "not within"
    parts = f"state {state / GIB:.3f} + activations {estimate.activations / GIB:.3f} + logits"
    return "\n".join(
        [
            f"estimated  {estimate.total / GIB:.3f} GiB: {parts} {estimate.logits / GIB:.3f}",
            f"measured   {measured / GIB:.3f} GiB: at most {resident.peak / GIB:.3f} resident, less "
            f"{resident.before / GIB:.3f} before the model (taken to be {PROCESS_BYTES / GIB:.3f})",
            f"measured / estimated = {measured / estimate.total:.3f}: {near} {TOLERANCE:.0%}",
        ]
    )
