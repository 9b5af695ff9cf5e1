"""What a GPU sends in an optimizer step, and how long that takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.analysis.plan_memory import Layout, StageContent
from pretrain.analysis.plan_model import Sizes
from pretrain.config.schema import Experiment
from pretrain.models.layers import ModelSpec
from pretrain.parallel.build import StageRow

NODE = 8
"""GPUs that are taken to share a node's own links."""
GRADIENT_BYTES = 4
"""Gradients travel in fp32 (communication_data_type)."""
INTEGER_BYTES = 8


@dataclass(frozen=True)
class Traffic:
    """Bytes that the busiest GPU sends in a step."""

    data_parallel: float
    """Gradients and weights between the copies of a stage."""
    pipeline: float
    """Activations and their gradients between neighbouring stages."""

    @property
    def total(self) -> float:
        return self.data_parallel + self.pipeline


@dataclass(frozen=True)
class Links:
    """Bytes a second that a GPU sends.

    Attributes:
        inside: to GPUs of its node.
        outside: to others.
        stated: by the user; otherwise they rank layouts, and are in no figure.
    """

    inside: float = 200e9
    outside: float = 25e9
    stated: bool = False

    def seconds(self, sent: Traffic, layout: Layout) -> float:
        """Nothing of it is hidden behind computation.

        Data-parallel processes of a stage are numbered one after the other, so that up to NODE of them share a node;
        the next stage's process is as many numbers away.
        """
        data = self.inside if layout.data_parallel <= NODE else self.outside
        pipe = self.inside if layout.data_parallel * layout.stages <= NODE else self.outside
        return sent.data_parallel / data + sent.pipeline / pipe


def traffic(
    experiment: Experiment,
    spec: ModelSpec,
    rows: Sequence[StageRow],
    contents: Sequence[StageContent],
    layout: Layout,
    sizes: Sizes,
) -> Traffic:
    """The most of a stage's GPU, data parallel and pipeline each for itself."""
    width = 4 if experiment.train.precision == "fp32" else 2
    data = max(data_parallel_bytes(content.parameters, layout, width) for content in contents)
    pipeline = max((stage_border_bytes(experiment, spec, row, layout, sizes, width) for row in rows[:-1]), default=0.0)
    return Traffic(data, pipeline)


def data_parallel_bytes(parameters: int, layout: Layout, width: int) -> float:
    """What one of N copies of so many parameters sends in a step, by rings.

    An all-reduce sends 2 (N-1)/N of its bytes, a reduce-scatter or all-gather half of that. As in DeepSpeed 0.19.8,
    ZeRO-0 all-reduces the gradients once a step; ZeRO-1 gathers the new weights as well; ZeRO-2 reduces after every
    micro-batch (its buckets are all-reduced, too); ZeRO-3 reduce-scatters after every micro-batch, and gathers the
    weights for every forward and backward; what a recomputation gathers stays for the backward.
    """
    part = (layout.data_parallel - 1) / layout.data_parallel * parameters
    gradients, micro_batches = GRADIENT_BYTES * part, layout.micro_batches
    if layout.zero_stage == 3:
        return micro_batches * (gradients + 2 * width * part)
    reductions = micro_batches if layout.zero_stage == 2 else 1
    return 2 * reductions * gradients + (width * part if layout.zero_stage else 0)


def stage_border_bytes(
    experiment: Experiment, spec: ModelSpec, row: StageRow, layout: Layout, sizes: Sizes, width: int
) -> float:
    """What crosses the border behind a stage in a step, both ways.

    It is what a stage in the middle sends: its state to the next one, the gradient of its input to the one before.
    """
    d, stack = experiment.model.hidden_size, spec.layers[row.stop - 1].name.partition(".")[0]
    if stack == "encoder":  # hidden, mask, target ids, sample
        floats, integers = sizes.source * d, sizes.source + sizes.target + 1
    elif sizes.source:  # hidden, the encoder's output, mask, sample
        floats, integers = (sizes.target + sizes.source) * d, sizes.source + 1
    else:
        floats, integers = sizes.target * d, sizes.target + 1
    return layout.micro_batches * layout.micro_batch * (2 * floats * width + integers * INTEGER_BYTES)
