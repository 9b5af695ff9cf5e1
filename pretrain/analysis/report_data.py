"""What the report's page is given: figures, thinned curves, coded depth signals, events, configuration."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np

from pretrain.analysis.compact import evenly, plain, script_json, short, thin_curve
from pretrain.analysis.figures import SECTIONS, figure
from pretrain.analysis.recorded_run import RecordedRun, Series, number
from pretrain.analysis.recorded_session import how_it_ended
from pretrain.analysis.recorded_verdicts import newest_verdicts
from pretrain.analysis.report_depth import packed_depth, shared_steps

MAX_DATA = 4_800_000  # bytes of all data on the page, which leaves it below 5 MB
MAX_CURVE_POINTS = 2000  # of a curve: two points for each pixel of a laptop's screen
LEAST_POINTS = 50
MAX_POINTS = 60_000  # of all curves: about 1.2 MB
MAX_EVENTS = 1000  # of all runs
MAX_EVENT_BYTES = 400_000
MAX_TEXT = 300
ROUTINE_EVENTS = ("save", "evaluate")
ALWAYS_DIFFERENT = ("name", "run.dir")


def report_data(runs: list[RecordedRun]) -> dict[str, Any]:
    """Everything the page shows of `runs`, made of what strict JSON knows, in less than `MAX_DATA` bytes.

    Keys: `runs` (label, path, model, status, last_step, figures, verdicts, metrics, layers, events, config, notes),
    `steps` (lists of sampled steps, to which the `at` of a matrix points), `differences` (keys of the configuration
    that are not the same in all runs), `signals` (what each depth signal is), `sections` (their titles in order).
    """
    curves = sum(len(run.metrics) for run in runs)
    points = max(LEAST_POINTS, min(MAX_CURVE_POINTS, MAX_POINTS // max(1, curves)))
    configs = [flatten(run.config) for run in runs]
    notes = [[*run.notes, *_metric_notes(run, points)] for run in runs]
    entries = [
        {"label": label, "config": config, "notes": told} | _entry(run, points, len(runs), told)
        for run, label, config, told in zip(runs, labels(runs), configs, notes, strict=True)
    ]
    names = dict.fromkeys(signal.signal for run in runs for signal in run.layers)
    data: dict[str, Any] = {
        "differences": differences(configs),
        "signals": {name: asdict(figure(name)) for name in names},
        "sections": SECTIONS,
    }
    room = MAX_DATA - len(script_json([entries, data]).encode())
    depth = packed_depth(runs, room, notes)
    steps = shared_steps(depth)
    shown = [entry | {"layers": layers} for entry, layers in zip(entries, depth, strict=True)]
    return data | {"runs": shown, "steps": steps}


def _entry(run: RecordedRun, points: int, runs: int, notes: list[str]) -> dict[str, Any]:
    """What the page shows of one of `runs` runs, without the signals over depth."""
    return {
        "path": str(run.path),
        "model": model_line(run.config),
        "status": status_line(run),
        "last_step": run.last_step,
        "figures": figures(run),
        "verdicts": newest_verdicts(run.verdicts),
        "metrics": {key: _curve(series, points) for key, series in run.metrics.items()},
        "events": _events(run, runs, notes),
    }


def _metric_notes(run: RecordedRun, limit: int) -> list[str]:
    if not run.metrics:
        return ["no step is logged yet"]
    notes = []
    for key, series in run.metrics.items():
        bad = series.steps[~np.isfinite(series.values)]
        if bad.size == 1:
            notes.append(f"{key} is not finite at step {bad[0]:,}: a red mark at the top of its plot")
        elif bad.size:
            notes.append(
                f"{key} is not finite at {bad.size:,} steps, the first {bad[0]:,}: red marks at the top of its plot"
            )
    longest = max(len(series.steps) for series in run.metrics.values())
    if longest > limit:
        notes.append(f"curves of {longest:,} points are thinned; every peak and dip is kept")
    return notes


def labels(runs: list[RecordedRun]) -> list[str]:
    """A name for each run; those that would be the same name get their folder beside it."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else f"{name} ({run.path})" for name, run in zip(names, runs, strict=True)]


def model_line(config: dict[str, Any]) -> str:
    """The model in a line, from what of it the configuration states."""
    model = config.get("model")
    if not isinstance(model, dict):
        return ""
    block = model.get("block")
    layers = [str(model[key]) for key in ("encoder_layers", "decoder_layers", "num_layers") if model.get(key)]
    pieces = [
        str(model.get("family", "")).replace("_", "-"),
        str(block.get("kind", "")) if isinstance(block, dict) else "",
        f"{' + '.join(layers)} layers" if layers else "",
        f"width {model['hidden_size']}" if "hidden_size" in model else "",
        f"FFN {model['ffn_size']}" if "ffn_size" in model else "",
        f"{model['num_heads']} heads" if "num_heads" in model else "",
        str(model.get("activation", "")),
    ]
    return " · ".join(piece for piece in pieces if piece)


def status_line(run: RecordedRun) -> str:
    """Where the run stands, from its events and its last logged step."""
    train = run.config.get("train")
    goal = train.get("max_steps") if isinstance(train, dict) else None
    place = f"step {run.last_step:,}" + (f" of {goal:,}" if isinstance(goal, int) else "")
    if reason := how_it_ended(run.events):
        return f"{place} · {reason[:120]}"
    return f"{place} · no end logged: still running, or killed" if run.events else place


def figures(run: RecordedRun) -> dict[str, float | str | None]:
    """The figures of the page's head in seconds, tokens per second and nats per token.

    None where the run has none, "nan" or "inf" for a final loss that is not finite.
    The summary speaks first; a run without one (alive or killed) is told from its logs.
    """
    loss = run.metrics.get("loss")
    final = float(loss.values[-1]) if loss else math.nan
    return {
        "step": run.last_step,
        "loss": plain(short(final, 6) if math.isfinite(final) else final) if loss else None,
        "loss_mean": short(float(loss.values[-20:].mean())) if loss else None,
        "loss_mean_over": min(20, len(loss.values)) if loss else None,
        "validation_loss": _summary(run, "validation_loss", _last(run, "validation_loss")),
        "source_use": _summary(run, "source_use", _last(run, "source_use")),
        "unigram_entropy": _summary(run, "unigram_entropy"),
        "parameters": _summary(run, "parameters", digits=12),
        "tokens_per_second": _summary(run, "tokens_per_second", _median(run, "tokens_per_second")),
        "mfu": _median(run, "mfu"),
        "seconds": _summary(run, "seconds", _total(run, "step_seconds")),
        "step_seconds": _median(run, "step_seconds"),
        "tokens": _last(run, "tokens", digits=15),
        "export_max_logit_difference_fp64": _summary(run, "export_max_logit_difference_fp64"),
        "export_max_logit_difference_saved": _summary(run, "export_max_logit_difference_saved"),
    }


def _summary(run: RecordedRun, key: str, otherwise: float | None = None, digits: int = 6) -> float | None:
    stated = short(number(run.summary.get(key)), digits)
    return otherwise if stated is None else stated


def _finite(run: RecordedRun, key: str) -> np.ndarray:
    series = run.metrics.get(key)
    return series.values[np.isfinite(series.values)] if series else np.empty(0)


def _last(run: RecordedRun, key: str, digits: int = 6) -> float | None:
    values = _finite(run, key)
    return short(float(values[-1]), digits) if values.size else None


def _median(run: RecordedRun, key: str) -> float | None:
    values = _finite(run, key)
    return short(float(np.median(values))) if values.size else None


def _total(run: RecordedRun, key: str) -> float | None:
    values = _finite(run, key)
    return short(float(values.sum())) if values.size else None


def _curve(series: Series, limit: int) -> dict[str, Any]:
    """A curve for the page: the points that show its shape, and apart from them the steps that were not finite."""
    finite = np.isfinite(series.values)
    steps, values = series.steps[finite], series.values[finite]
    keep = thin_curve(values, limit)
    bad = series.steps[~finite]
    curve: dict[str, Any] = {
        "steps": steps[keep].tolist(),
        "values": [short(value) for value in values[keep].tolist()],
        "bad": bad[evenly(len(bad), 200)].tolist(),
        "logged": len(series.steps),
    }
    if len(keep) < len(steps):  # peaks and dips say nothing of the mean, which the smooth line needs
        pieces = np.array_split(np.arange(len(steps)), limit // 4)
        curve["mean"] = {
            "steps": [int(steps[piece].mean()) for piece in pieces],
            "values": [short(float(values[piece].mean())) for piece in pieces],
        }
    return curve


def _events(run: RecordedRun, runs: int, notes: list[str]) -> list[dict[str, Any]]:
    """The run's events, its share of what `runs` runs may show; of too many, the routine ones are thinned first."""
    events = [_event(event) for event in run.events]
    size = len(script_json(events).encode())
    limit = min(MAX_EVENTS // runs, len(events) * MAX_EVENT_BYTES // (runs * max(1, size)))
    limit = max(20, limit)
    rare = [i for i, event in enumerate(events) if event["event"] not in ROUTINE_EVENTS]
    routine = [i for i, event in enumerate(events) if event["event"] in ROUTINE_EVENTS]
    rare = [rare[i] for i in evenly(len(rare), limit)]
    routine = [routine[i] for i in evenly(len(routine), max(2, limit - len(rare)))]
    kept = sorted(rare + routine)
    if len(kept) < len(events):
        notes.append(f"events: {len(kept):,} of {len(events):,} are shown, saves and evaluations thinned first")
    return [events[i] for i in kept]


def _event(event: dict[str, Any]) -> dict[str, Any]:
    step = short(number(event.get("step")), 15)
    details = {key: value for key, value in event.items() if key not in ("time", "step", "event")}
    return {
        "time": str(event.get("time", ""))[:40],
        "step": None if step is None else int(step),
        "event": str(event.get("event", "?"))[:40],
        "details": {key[:60]: _text(value) for key, value in details.items() if value is not None},
    }


def _text(value: Any) -> str:
    value = plain(short(value) if isinstance(value, float) and math.isfinite(value) else value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested configuration as dotted keys and texts, in the order of the file."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _text(value)
    return flat


def differences(configs: list[dict[str, str]]) -> list[dict[str, Any]]:
    """The keys whose texts are not the same in all `configs`, with a text (or None) for each; names left out."""
    keys = dict.fromkeys(key for config in configs for key in config if key not in ALWAYS_DIFFERENT)
    rows = [{"key": key, "values": [config.get(key) for config in configs]} for key in keys]
    return [row for row in rows if len(set(row["values"])) > 1]
