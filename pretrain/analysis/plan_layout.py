"""The layouts that a number of GPUs allows, what each takes, and which to choose."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pretrain.analysis.plan_memory import GIB, Layout, Memory, StageContent, memory, stage_contents
from pretrain.analysis.plan_model import RECOMPUTED, TRAINING, Sizes, stack_of, tokens_per_step
from pretrain.analysis.plan_speed import ASSUMED, LayerTimes
from pretrain.analysis.plan_traffic import Links, Traffic, traffic
from pretrain.config.checks import Machine, offload_fits_layout, zero_fits_pipeline, zero_fits_precision
from pretrain.config.schema import Experiment
from pretrain.errors import ConfigError
from pretrain.models.layers import ModelSpec
from pretrain.parallel.build import StageRow, stage_table

FILL = 0.85
"""Share of a GPU's memory that a plan may use. The rest is for the CUDA context, NCCL's buffers, and memory that the
allocator holds in pieces; on CPUs up to a fifth more than estimated was resident."""
MAX_STAGES = 128
MAX_MICRO_BATCH = 1024
CHECKPOINTING = (0, 1, 2, 4, 8, 16, 32)
OFFLOAD_BYTES_PER_SECOND = 25e9
"""Assumed for ranking: an offloaded state's way between GPU and host, and the host's step, a byte of that state."""


@dataclass(frozen=True)
class Option:
    """A layout and what it takes."""

    layout: Layout
    memory: Memory
    """Of the fullest stage."""
    idle: float
    """Share of a step that a stage waits on average: the pipeline's bubble, and stages that are not of one cost."""
    traffic: Traffic
    compute_seconds: float
    """Of a step without communication."""
    ranked_seconds: float
    """Of a step with assumed or stated communication."""
    fits: bool

    @property
    def overrides(self) -> list[str]:
        """The keys that choose this layout, to be pasted behind train.py."""
        layout = self.layout
        keys = {
            "parallel.pipeline_stages": layout.stages,
            "parallel.zero_stage": layout.zero_stage,
            "parallel.offload_optimizer": str(layout.offload).lower(),
            "batch.micro_batch_size": layout.micro_batch,
            "train.activation_checkpointing": layout.checkpoint_every,
        }
        return [f"{key}={value}" for key, value in keys.items()]


class Planner:
    """All that layouts of one model share.

    Args:
        experiment: its model, global batch and precision count, its own layout does not.
        spec: the model.
        sizes: of a sample.
        times: of its layers.
        links: between GPUs.
    """

    def __init__(self, experiment: Experiment, spec: ModelSpec, sizes: Sizes, times: LayerTimes, links: Links):
        self.experiment, self.spec, self.sizes, self.times, self.links = experiment, spec, sizes, times, links
        self.blocks = sum(bool(stack_of(layer.name)) for layer in spec.layers)
        self._stages: dict[int, tuple[list[StageRow], list[StageContent]]] = {}
        self._seconds: dict[int, list[float]] = {}

    def options(self, gpus: int, gpu_memory: float) -> list[Option]:
        """The best micro-batch and checkpointing for each division of the GPUs, the fastest that fits first.

        Args:
            gpus: how many.
            gpu_memory: of each, bytes.

        Raises:
            ConfigError: the global batch goes into no division of them.
        """
        divisions = list(self._divisions(gpus))
        if not divisions:
            batch = self.experiment.batch.global_batch_size
            raise ConfigError(
                f"batch.global_batch_size = {batch} cannot be shared by {gpus} GPUs: no pipeline of at most "
                f"{min(self.blocks, MAX_STAGES)} stages leaves a number of data-parallel processes that divides it; "
                f"set it to a multiple of {gpus}"
            )
        found = []
        for stages, zero, offload in divisions:
            choices = [self._option(layout, gpu_memory) for layout in self._layouts(gpus, stages, zero, offload)]
            found.append(min(choices, key=_preference))
        return sorted(found, key=_preference)

    def _divisions(self, gpus: int) -> Iterator[tuple[int, int, bool]]:
        """(stages, ZeRO stage, offload) that training would take.

        With fewer samples than GPUs no pipeline can keep its stages busy, else each can: none is left out here.
        """
        batch = self.experiment.batch.global_batch_size
        largest = min(gpus, self.blocks, MAX_STAGES)
        possible = [p for p in range(1, largest + 1) if gpus % p == 0 and batch % (gpus // p) == 0]
        for stages, zero, offload in itertools.product(possible, (0, 1, 2, 3), (False, True)):
            if self._allowed(stages, zero, offload):
                yield stages, zero, offload

    def _allowed(self, stages: int, zero: int, offload: bool) -> bool:
        """Whether training would take it."""
        keys = {"pipeline_stages": stages, "zero_stage": zero, "offload_optimizer": offload}
        parallel = self.experiment.parallel.model_copy(update=keys)
        experiment = self.experiment.model_copy(update={"parallel": parallel})
        try:
            for test in (zero_fits_pipeline, zero_fits_precision, offload_fits_layout):
                test(experiment, Machine(stages, "cuda"))
        except ConfigError:
            return False
        return True

    def _layouts(self, gpus: int, stages: int, zero: int, offload: bool) -> Iterator[Layout]:
        data_parallel = gpus // stages
        share = self.experiment.batch.global_batch_size // data_parallel
        sizes = [size for size in range(1, min(share, MAX_MICRO_BATCH) + 1) if share % size == 0]
        busy = [size for size in sizes if share // size >= stages] or [1]
        for size, every in itertools.product(busy, CHECKPOINTING):
            if every <= max(1, self.blocks // stages):
                yield Layout(stages, data_parallel, zero, offload, size, share // size, every)

    def _option(self, layout: Layout, gpu_memory: float) -> Option:
        rows, contents = self._table(layout.stages)
        memories = [memory(self.experiment, content, layout, self.sizes) for content in contents]
        fullest = max(memories, key=lambda stage: stage.total)
        seconds = self._layer_seconds(layout.micro_batch)
        passes = RECOMPUTED / TRAINING if layout.checkpoint_every else 1.0
        stages = [passes * sum(seconds[row.start : row.stop]) for row in rows]
        compute = (layout.micro_batches + layout.stages - 1) * max(stages)
        idle = 1 - layout.micro_batches * sum(stages) / (layout.stages * compute)
        sent = traffic(self.experiment, self.spec, rows, contents, layout, self.sizes)
        ranked = compute + self.links.seconds(sent, layout) + fullest.host / OFFLOAD_BYTES_PER_SECOND
        return Option(layout, fullest, idle, sent, compute, ranked, fullest.total <= FILL * gpu_memory)

    def _table(self, stages: int) -> tuple[list[StageRow], list[StageContent]]:
        if stages not in self._stages:
            parallel = self.experiment.parallel.model_copy(update={"pipeline_stages": stages})
            rows = stage_table(self.experiment.model_copy(update={"parallel": parallel}), self.spec, "cuda")
            self._stages[stages] = rows, stage_contents(self.spec, rows)
        return self._stages[stages]

    def _layer_seconds(self, micro_batch: int) -> list[float]:
        if micro_batch not in self._seconds:
            self._seconds[micro_batch] = [self.times.seconds(layer, micro_batch) for layer in self.spec.layers]
        return self._seconds[micro_batch]

    def tokens_per_second(self, option: Option) -> float | None:
        """Of all GPUs together; None where no layer time is measured or stated, and with the optimizer on the host.

        Communication is in it where the links' speed is stated, else it is left out.
        """
        if self.times.source == ASSUMED or option.layout.offload:
            return None
        seconds = option.ranked_seconds if self.links.stated else option.compute_seconds
        return tokens_per_step(self.experiment.batch.global_batch_size, self.sizes.tokens) / seconds

    def document(self, gpus: int, gpu_memory: float, options: Sequence[Option]) -> dict[str, Any]:
        """The options as a JSON object; the first is what is recommended, if it fits."""
        best = options[0]
        return {
            "gpus": gpus,
            "gpu_memory_gib": gpu_memory / GIB,
            "recommended": best.overrides if best.fits else None,
            "options": [
                {
                    "layout": asdict(option.layout),
                    "bytes": asdict(option.memory) | {"total": option.memory.total},
                    "fits": option.fits,
                    "idle": option.idle,
                    "bytes_sent": asdict(option.traffic) | {"total": option.traffic.total},
                    "ranked_seconds": option.ranked_seconds,
                    "tokens_per_second": self.tokens_per_second(option),
                }
                for option in options
            ],
        }


def _preference(option: Option) -> tuple[Any, ...]:
    """What fits first; then the fastest (to three digits), the simplest, the one that takes least memory.

    ZeRO-3 and the host come after all others: with 2,400 small weights on two processes a step of ZeRO-3 took 10 times
    that of ZeRO-1, for its work on each weight by itself, which no count of bytes shows.
    """
    layout = option.layout
    if not option.fits:
        return (True, option.memory.total)
    last_resort = (layout.offload, layout.zero_stage == 3)
    rounded = float(f"{option.ranked_seconds:.2e}")
    return (False, *last_resort, rounded, layout.zero_stage != 1, layout.stages, option.memory.total)
