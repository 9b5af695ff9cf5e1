"""A benchmark's figures as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

GIB = 2**30
QUIET = 0.1
"""Cores that other programs may use without a word about it."""
COLUMNS = (
    ("layers", "{layers:,}"),
    ("parameters", "{parameters:,}"),
    ("start-up s", "{engine[start_up_seconds]:.2f}"),
    ("first step s", "{engine[first_step_seconds]:.2f}"),
    ("engine s", "{engine[median_step_seconds]:.3f}"),
    ("plain s", "{plain[median_step_seconds]:.3f}"),
    ("ratio", "{ratio[median]:.3f}"),
    ("interval", "{ratio[low]:.3f}..{ratio[high]:.3f}"),
    ("tokens/s", "{engine[tokens_per_second]:,.0f}"),
    ("peak GiB", "{peak:.2f}"),
)


def table(measurements: Sequence[dict[str, Any]]) -> str:
    """One line a measurement; all of one recipe and layout."""
    rows = [[name for name, _ in COLUMNS]]
    for figures in measurements:
        peak = max(figures["engine"]["peak_resident_bytes"]) / GIB
        rows.append([cell.format(peak=peak, **figures) for _, cell in COLUMNS])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def text(described: dict[str, Any], measurements: Sequence[dict[str, Any]]) -> str:
    """All that the command prints."""
    first, last = measurements[0], measurements[-1]
    micro_batches = first["global_batch_size"] // first["micro_batch_size"]
    own, plain = first["threads"]["each_process"], first["threads"]["plain_loop"]
    lines = [
        f"{first['recipe']}: {first['global_batch_size']} samples a step, {first['tokens_per_step']:,} tokens, "
        f"micro-batches of {first['micro_batch_size']}, {first['precision']}",
        f"engine: {_count(first['world_size'], 'process', 'processes')} of {_count(own, 'thread')}, "
        f"{_count(first['pipeline_stages'], 'pipeline stage')} x {first['data_parallel_size']} data-parallel, "
        f"{_count(first['micro_batches'], 'micro-batch', 'micro-batches')} each, ZeRO-{first['zero_stage']}",
        f"plain loop: 1 process of {_count(plain, 'thread')}, "
        f"{_count(micro_batches, 'micro-batch', 'micro-batches')}, AdamW {first['plain_adamw']}",
        "",
        table(measurements),
        "",
        f"engine s, plain s: medians of {last['ratio']['pairs']} steps in turns; ratio: median of the pairs' ratios, "
        f"its interval holds the true median with probability {last['ratio']['confidence']:.3f}",
        "start-up s: building the engine; peak GiB: resident memory of the largest process, "
        "the plain loop's copy not yet there",
        "same work: losses differ by at most {:.1e}, gradient norms by {:.1e} (relative)".format(
            max(figures["largest_loss_difference"] for figures in measurements),
            max(figures["largest_grad_norm_difference"] for figures in measurements),
        ),
        f"{described['processor']}, {_count(described['cores'], 'core')}; "
        f"torch {described['torch']}, DeepSpeed {described['deepspeed']}",
    ]
    others = max((figures["others_cores"] or 0.0) for figures in measurements)
    if others > QUIET:
        lines.append(f"beware: other programs kept {others:.2f} cores busy meanwhile; repeat on a quiet machine")
    return "\n".join(lines)


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
