"""Layouts as a table for a terminal of 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from pretrain.analysis.plan_layout import FILL, Option, Planner
from pretrain.analysis.plan_memory import GIB
from pretrain.analysis.plan_model import tokens_per_step
from pretrain.analysis.plan_speed import ASSUMED, ASSUMED_FLOPS, SUBLAYER_SECONDS
from pretrain.analysis.plan_traffic import NODE

PIPELINES = 4
"""Pipelines in a table, the best first."""
HEAD = (
    f"  {'stages x dp':>11} {'ZeRO':>6} {'batches':>10} {'keep':>4}{'weights':>8}{'grads':>6}{'optim':>6}{'activ':>6}"
    f"{'logits':>7}{'total':>6} {'idle':>4} {'sent':>5} {'tokens/s':>10}"
)
LEGEND = """\
GiB a GPU, of the fullest stage. batches: micro-batches, of how many samples. keep: activations are
kept every k layers and recomputed between; all: none recomputed. idle: share of a step that stages
wait. sent: GiB a step, of the GPU that sends most. +host: the optimizer's state and step are the
host's. *: recommended. !: does not fit."""


def table(planner: Planner, gpus: int, gpu_memory: float, options: Sequence[Option]) -> str:
    """One number of GPUs: its layouts and what to write behind train.py."""
    batch, best = planner.experiment.batch.global_batch_size, options[0]
    tokens = tokens_per_step(batch, planner.sizes.tokens)
    lines = [
        f"{gpus} GPUs of {gpu_memory / GIB:g} GiB, of which {FILL * gpu_memory / GIB:.3g} are planned with; "
        f"{batch:,} samples = {tokens:,} tokens a step",
        HEAD,
    ]
    lines += [_line(planner, option, option is best and best.fits) for option in _shown(options)]
    if best.fits:
        lines.append(f"recommended for {gpus} GPUs:")
        lines.append(f"  {' '.join(best.overrides[:3])} \\\n  {' '.join(best.overrides[3:])}")
    else:
        lines.append(f"nothing fits {gpus} GPUs of {gpu_memory / GIB:g} GiB; use more or larger GPUs")
    return "\n".join(lines)


def remarks(planner: Planner) -> str:
    """How to read the columns, and what decided the order."""
    times, links = planner.times, planner.links
    rate = f"{links.inside / 1e9:g} GB/s between GPUs of a node of {NODE} and {links.outside / 1e9:g} GB/s beyond"
    if times.source == ASSUMED:
        order = (
            f"ranked with {ASSUMED_FLOPS / 1e12:g} TFLOP/s a GPU, {1e3 * SUBLAYER_SECONDS:g} ms a sublayer at least, "
            f"{rate}: assumed, so that no tokens/s are given; state them by --layer-tflops or --layer-seconds and "
            "--bandwidth, or time this machine's layers by --measure"
        )
    elif links.stated:
        order = f"tokens/s from {times.words} and {links.outside / 1e9:g} GB/s that a GPU sends (stated)"
    else:
        order = f"tokens/s from {times.words}, without communication; ranked with {rate} (assumed)"
    order = "\n".join(textwrap.wrap(order, 100, break_on_hyphens=False))
    return f"{LEGEND}\n{order}"


def _shown(options: Sequence[Option]) -> list[Option]:
    pipelines = [option for option in options if option.layout.stages > 1][:PIPELINES]
    shown = [option for option in options if option.layout.stages == 1] + pipelines
    return sorted(shown, key=lambda o: (o.layout.stages, o.layout.offload, o.layout.zero_stage))


def _line(planner: Planner, option: Option, recommended: bool) -> str:
    layout, memory = option.layout, option.memory
    mark = "*" if recommended else " " if option.fits else "!"
    zero = f"{layout.zero_stage}{'+host' if layout.offload else ''}"
    batches = f"{layout.micro_batches} of {layout.micro_batch}"
    keep = str(layout.checkpoint_every or "all")
    figures = [memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.logits, memory.total]
    cells = "".join(f"{_number(f / GIB):>{w}}" for f, w in zip(figures, (8, 6, 6, 6, 7, 6), strict=True))
    rate = planner.tokens_per_second(option)
    speed = f"{rate:,.0f}" if rate else "unknown"
    return (
        f"{mark} {f'{layout.stages} x {layout.data_parallel}':>11} {zero:>6} {batches:>10} {keep:>4}{cells} "
        f"{option.idle:>4.0%} {_number(option.traffic.total / GIB):>5} {speed:>10}"
    )


def _number(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
