"""A benchmark's figures as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pretrain.analysis.bench_pipeline import pipeline_text

GIB = 2**30
QUIET = 0.1
"""Cores that other programs may use without a word about it."""
RIVALS = {"plain": ("plain", "the plain loop"), "hf": ("Trainer", "the Hugging Face Trainer")}
"""What `against` is called: in a column, in a sentence."""

Figures = dict[str, Any]
Column = tuple[str, Callable[[Figures], str]]


def _times(rival: str) -> tuple[Column, ...]:
    return (
        ("engine s", lambda f: f"{f['engine']['median_step_seconds']:.3f}"),
        (f"{RIVALS[rival][0]} s", lambda f: f"{f['rival']['median_step_seconds']:.3f}"),
        ("ratio", lambda f: f"{f['ratio']['median']:.3f}"),
        ("interval", lambda f: f"{f['ratio']['low']:.3f}..{f['ratio']['high']:.3f}"),
        ("CPU ratio", lambda f: f"{f['cpu_ratio']['median']:.3f}"),
    )


def recipe_columns(rival: str) -> tuple[Column, ...]:
    return (
        ("layers", lambda f: f"{f['layers']:,}"),
        ("parameters", lambda f: f"{f['parameters']:,}"),
        ("start-up s", lambda f: f"{f['engine']['start_up_seconds']:.2f}"),
        ("first step s", lambda f: f"{f['engine']['first_step_seconds']:.2f}"),
        *_times(rival),
        ("tokens/s", lambda f: f"{f['engine']['tokens_per_second']:,.0f}"),
        ("peak GiB", lambda f: f"{max(f['engine']['peak_resident_bytes']) / GIB:.2f}"),
    )


def suite_columns(rival: str) -> tuple[Column, ...]:
    bounds: tuple[Column, ...] = (
        ("bound", lambda f: f"{f['bound']:.2f}"),
        ("", lambda f: "holds" if f["ratio"]["median"] <= f["bound"] else "above"),
    )
    return (
        ("case", lambda f: f["recipe"]),
        ("class", lambda f: f["rival"].get("class", "-")),
        ("parameters", lambda f: f"{f['parameters']:,}"),
        *_times(rival),
        *(bounds if rival == "hf" else ()),
        ("others", lambda f: "?" if f["others_cores"] is None else f"{f['others_cores']:.2f}"),
    )


def table(columns: Sequence[Column], measurements: Sequence[Figures]) -> str:
    """One line a measurement."""
    rows = [[name for name, _ in columns], *([cell(figures) for _, cell in columns] for figures in measurements)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def text(described: Figures, measurements: Sequence[Figures], suite: bool = False) -> str:
    """All that the command prints.

    Args:
        described: `bench_machine.machine()`.
        measurements: of one recipe and layout, or, with `suite`, of a suite's cases.
    """
    rival, last = measurements[0]["against"], measurements[-1]
    name, title = RIVALS[rival]
    columns = suite_columns(rival) if suite else recipe_columns(rival)
    lines = [
        *([] if suite else _layout(measurements[0])),
        table(columns, measurements),
        "",
        *([] if suite or not last["pipeline_seconds"] else [*pipeline_text(last), ""]),
        f"engine s, {name} s: medians of {last['ratio']['pairs']} steps in turns; ratio: median of the pairs' ratios, "
        f"its interval holds the true median with probability {last['ratio']['confidence']:.3f}",
        "CPU ratio: the same of CPU seconds, which other programs disturb less",
        *(["others: cores that other programs kept busy meanwhile"] if suite else _legend(title)),
        _same_work(measurements),
        f"{described['processor']}, {_count(described['cores'], 'core')}; "
        f"torch {described['torch']}, DeepSpeed {described['deepspeed']}, transformers {described['transformers']}",
    ]
    others = max((figures["others_cores"] or 0.0) for figures in measurements)
    if others > QUIET:
        lines.append(f"beware: other programs kept {others:.2f} cores busy meanwhile; repeat on a quiet machine")
    return "\n".join(lines)


def _layout(first: Figures) -> list[str]:
    micro_batches = first["global_batch_size"] // first["micro_batch_size"]
    own, others = first["threads"]["each_process"], first["threads"]["rival"]
    rival = first["rival"]
    title = rival["class"] + " in " + RIVALS["hf"][1] if "class" in rival else RIVALS[first["against"]][1]
    return [
        f"{first['recipe']}: {first['global_batch_size']} samples a step, {first['tokens_per_step']:,} tokens, "
        f"micro-batches of {first['micro_batch_size']}, {first['precision']}",
        f"engine: {_count(first['world_size'], 'process', 'processes')} of {_count(own, 'thread')}, "
        f"{_count(first['pipeline_stages'], 'pipeline stage')} x {first['data_parallel_size']} data-parallel, "
        f"{_count(first['micro_batches'], 'micro-batch', 'micro-batches')} each, ZeRO-{first['zero_stage']}",
        f"{title}: 1 process of {_count(others, 'thread')}, "
        f"{_count(micro_batches, 'micro-batch', 'micro-batches')}, {rival['optimizer']}",
        "",
    ]


def _legend(title: str) -> list[str]:
    return [
        "start-up s: building the engine; peak GiB: resident memory of the largest process, "
        f"the copy of {title} not yet there"
    ]


def _same_work(measurements: Sequence[Figures]) -> str:
    losses = max(figures["largest_loss_difference"] for figures in measurements)
    norms = [figures["largest_grad_norm_difference"] for figures in measurements]
    stated = [norm for norm in norms if norm is not None]
    said = f"same work: losses differ by at most {losses:.1e}"
    if stated:
        said += f", gradient norms by {max(stated):.1e}"
    said += " (relative)"
    if len(stated) < len(norms):
        said += "; a folded DeepNorm is compared at learning rate 0, by its losses alone"
    return said


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
