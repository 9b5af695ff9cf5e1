"""How long a layer and a step take: as measured, as stated, or, for ranking layouts alone, as assumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from pretrain.analysis.plan_model import TRAINING, Sizes, stack_of
from pretrain.config.schema import Experiment
from pretrain.models.layer_list import LayerList
from pretrain.models.layers import LayerSpec, ModelSpec
from pretrain.models.registry import FAMILIES
from pretrain.parallel.process_group import accelerator

ASSUMED_FLOPS = 200e12
"""FLOP/s of a GPU where none are stated; ranks layouts, and is no figure of a table."""
SUBLAYER_SECONDS = 0.3e-3
"""Least time of a sublayer forward and backward: that of the host which starts its kernels (measured on a CPU core:
0.32 ms). Ranks layouts, so that no micro-batch is chosen that leaves a GPU waiting for its host."""
ASSUMED, STATED, MEASURED = "assumed", "stated", "measured"


@dataclass(frozen=True)
class LayerTimes:
    """Seconds of a layer's forward and backward.

    Attributes:
        source: assumed, stated or measured.
        flops: FLOP/s in each stack.
        fixed: seconds that each stack's layer takes beside them, whatever the micro-batch; empty: each sublayer takes
            at least SUBLAYER_SECONDS.
        words: where the times come from, for people.
    """

    source: str
    flops: Mapping[str, float]
    fixed: Mapping[str, float]
    words: str

    def seconds(self, layer: LayerSpec, micro_batch: int) -> float:
        """Of one micro-batch; layers outside the stacks (the head) go by the last stack's FLOP/s."""
        stack = stack_of(layer.name)
        flops = self.flops[stack] if stack else list(self.flops.values())[-1]
        work = TRAINING * layer.cost * micro_batch / flops
        return self.fixed.get(stack, 0.0) + work if self.fixed else max(work, layer.branches * SUBLAYER_SECONDS)


def stacks(spec: ModelSpec) -> dict[str, LayerSpec]:
    """Stack -> its first layer."""
    found: dict[str, LayerSpec] = {}
    for layer in spec.layers:
        if stack := stack_of(layer.name):
            found.setdefault(stack, layer)
    return found


def times_of_flops(spec: ModelSpec, flops: float | None) -> LayerTimes:
    """Every layer at so many FLOP/s; None assumes them."""
    source = ASSUMED if flops is None else STATED
    flops = flops or ASSUMED_FLOPS
    words = f"a GPU that does {flops / 1e12:g} TFLOP/s ({source})"
    return LayerTimes(source, dict.fromkeys(stacks(spec), flops), {}, words)


def times_of_seconds(spec: ModelSpec, seconds: Mapping[str, float], micro_batch: int) -> LayerTimes:
    """From the forward and backward time of a layer of each stack at a micro-batch."""
    flops = {stack: TRAINING * layer.cost * micro_batch / seconds[stack] for stack, layer in stacks(spec).items()}
    each = ", ".join(f"{stack} {1e3 * seconds[stack]:g} ms" for stack in flops)
    return LayerTimes(STATED, flops, {}, f"layers of {each} at micro-batches of {micro_batch} (stated)")


def measured_times(experiment: Experiment, sizes: Sizes, seconds: float = 1.0) -> LayerTimes:
    """Time one layer of each stack on this machine, at the recipe's micro-batch and at a quarter of it.

    The line through both gives a fixed time and one a sample; a machine whose rate falls with the batch has no fixed
    time.

    Args:
        experiment: whose width, precision and micro-batch are taken.
        sizes: of a sample.
        seconds: how long each is repeated.
    """
    section = experiment.model
    one = {f"{stack}_layers": 1 for stack in ("encoder", "decoder") if stack in section.family}
    build = FAMILIES[section.family]
    spec = build(section.model_copy(update=one), sizes.vocabulary, sizes.source, sizes.target)
    large = experiment.batch.micro_batch_size
    batches = (large, max(1, large // 4)) if large > 1 else (4, 1)
    found = {size: layer_seconds(experiment, spec, sizes, size, seconds) for size in batches}
    flops, fixed = {}, {}
    for stack, layer in stacks(spec).items():
        (big, at_big), (small, at_small) = ((size, found[size][stack]) for size in batches)
        each = (at_big - at_small) / (big - small)
        if not 0 < each <= at_big / big:
            each = at_big / big
        flops[stack] = TRAINING * layer.cost / each
        fixed[stack] = at_big - each * big
    each_layer = ", ".join(f"{stack} {1e3 * time_:.3g} ms" for stack, time_ in found[large].items())
    place = f"{torch.get_num_threads()} CPU threads" if accelerator() == "cpu" else torch.cuda.get_device_name()
    return LayerTimes(
        MEASURED, flops, fixed, f"layers of {each_layer} at micro-batches of {large} on {place} (measured)"
    )


def layer_seconds(
    experiment: Experiment, spec: ModelSpec, sizes: Sizes, micro_batch: int, seconds: float
) -> dict[str, float]:
    """Stack -> median seconds of forward and backward of its first layer in `spec`, of at least 3 repeats."""
    device, half = torch.device(accelerator()), experiment.train.precision != "fp32"
    layers = LayerList(spec, seed=1).to(device)
    if half:
        layers = layers.to(torch.bfloat16 if experiment.train.precision == "bf16" else torch.float16)
    modules, found = dict(layers.built_layers()), {}
    state = spec.state(_ones(spec, sizes, micro_batch, device))
    for index, layer in enumerate(spec.layers):
        if stack_of(layer.name):
            entering = tuple(t.detach().requires_grad_(t.is_floating_point()) for t in state)
            found[stack_of(layer.name)] = _median_time(_pass(layer, modules[layer.name], entering), device, seconds)
        if stack_of(layer.name) == list(stacks(spec))[-1]:
            break
        with torch.no_grad():
            state = layers.run(index, index + 1, *state)
    return found


def _ones(spec: ModelSpec, sizes: Sizes, rows: int, device: torch.device) -> dict[str, Tensor]:
    """A micro-batch of one token, all of it visible."""
    source, target = sizes.source or sizes.target, sizes.target or sizes.source
    length = {key: target if key.startswith("decoder") else source for key in spec.inputs}
    batch = {key: torch.ones(rows, length[key], dtype=torch.long, device=device) for key in spec.inputs}
    return batch | {"sample_key": torch.arange(rows, device=device)}


def _pass(layer: LayerSpec, module: nn.Module, state: tuple[Tensor, ...]) -> Callable[[], None]:
    def run() -> None:
        hidden = layer.apply(module, state)[0]
        hidden.backward(torch.ones_like(hidden))

    return run


def _median_time(action: Callable[[], None], device: torch.device, seconds: float) -> float:
    """Of at least 3 repeats, after two that are not counted."""
    times: list[float] = []
    for _ in range(2):
        action()
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return median(times)
