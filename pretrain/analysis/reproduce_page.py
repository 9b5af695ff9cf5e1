"""The page of the DeepNet figure: verdicts, plots and table in one HTML file that opens without a network."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib import resources

from pretrain.analysis.reproduce_deepnet import (
    SETTINGS,
    Curve,
    Curves,
    Setting,
    Study,
    markdown,
    shown_steps,
    table,
    write_csv,
)
from pretrain.analysis.reproduce_deepnet_verdict import Verdict, verdicts
from pretrain.analysis.svg_plot import Line, line_plot
from pretrain.errors import UserError
from pretrain.state.files import replace_text

TITLE = "Model update over depth"
INTRODUCTION = (
    "‖F(x, θ) − F(x, θ₀)‖: how far training has moved the model's output on fixed samples, F being the last "
    "LayerNorm's output. L2 norm of a token's vector, RMS over tokens, without dropout. After the figure of DeepNet "
    "(arXiv 2203.00555); tiny encoder-decoders of width 64, FFN 128 and 2 heads, real runs."
)
DEPTH_COLORS = ("#3b528b", "#21918c", "#5ec962", "#e0a100", "#d55e00", "#b8498f", "#6b6b6b")
"""Of the depths, from shallow to deep."""
DESIGN_COLORS = {"deepnorm": "#2f74b8", "post_ln": "#d55e00"}
STYLE = """
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 12px; }
.plot { width: 100%; height: auto; color: var(--soft); }
.plot text { font: 11px system-ui, sans-serif; fill: currentColor; }
.plot .title { font-weight: 650; font-size: 12.5px; fill: var(--ink); }
.plot .end { text-anchor: end; }
.plot .middle { text-anchor: middle; }
.plot .rule { stroke: var(--grid); fill: none; }
.plot .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 8px 0; color: var(--soft); }
.legend i { display: inline-block; width: 18px; height: 3px; margin-right: 6px; vertical-align: middle; }
.verdict { margin-top: 10px; }
.verdict b { display: block; }
td.number { text-align: right; }
"""


def write_study(study: Study) -> list[Verdict]:
    """Write index.html, table.md and curves.csv into the study's folder, of what its runs have logged.

    Raises:
        UserError: the folder cannot be written to.
    """
    curves = study.curves()
    found = verdicts(curves)
    try:
        write_csv(study.folder / "curves.csv", curves)
        replace_text(study.folder / "table.md", markdown(*table(curves)) + "\n" + _spoken(found))
        replace_text(study.folder / "index.html", page(curves, found))
    except OSError as error:
        raise UserError(
            f"{study.folder}: cannot be written to ({error.strerror}); choose another place with -o"
        ) from None
    return found


def _spoken(found: Sequence[Verdict]) -> str:
    return "\n".join(f"{verdict.claim} **{verdict.result.capitalize()}.** {verdict.words}\n" for verdict in found)


def page(curves: Curves, found: Sequence[Verdict]) -> str:
    """The whole page."""
    style = resources.files("pretrain.analysis").joinpath("report.css").read_text(encoding="utf-8")
    judged = "".join(
        f'<div class="card verdict"><b>{html.escape(verdict.result.capitalize())}: {html.escape(verdict.claim)}</b>'
        f"{html.escape(verdict.words)}</div>"
        for verdict in found
    )
    sections = [
        ("Update over steps", _depth_legend(curves), _over_steps(curves, "update", log=True)),
        ("Update over depth", _design_legend(), _over_depth(curves)),
        ("Loss over steps", _depth_legend(curves), _over_steps(curves, "loss", log=False)),
        ("Heuristic bound over steps", _depth_legend(curves), _over_steps(curves, "bound", log=True)),
    ]
    body = "".join(
        f'<h2>{title}</h2><div class="legend">{legend}</div><div class="plots">{"".join(plots)}</div>'
        for title, legend, plots in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{TITLE}</title><style>{style}{STYLE}</style></head><body><main>"
        f'<h1>{TITLE}</h1><p class="sub">{INTRODUCTION}</p>{judged}{body}<h2>Figures</h2>'
        f'<div class="card wide">{_table(curves)}</div></main></body></html>\n'
    )


def _depths(curves: Curves) -> list[int]:
    return sorted({depth for by_depth in curves.values() for depth in by_depth})


def _color(curves: Curves, depth: int) -> str:
    return DEPTH_COLORS[_depths(curves).index(depth) % len(DEPTH_COLORS)]


def _key(color: str, text: str) -> str:
    return f'<span><i style="background:{color}"></i>{html.escape(text)}</span>'


def _depth_legend(curves: Curves) -> str:
    return "".join(_key(_color(curves, depth), f"{depth}+{depth} layers") for depth in _depths(curves))


def _design_legend() -> str:
    keys = "".join(_key(DESIGN_COLORS[setting.block], setting.title.partition(",")[0]) for setting in SETTINGS[:2])
    return keys + "<span>dashed: without warm-up</span>"


def _over_steps(curves: Curves, figure: str, log: bool) -> list[str]:
    """A plot a setting, all on one scale."""
    values = [v for by_depth in curves.values() for c in by_depth.values() for v in getattr(c, figure) if v == v]
    span = (min((v for v in values if v > 0 or not log), default=1.0), max(values, default=1.0))

    def line(depth: int, curve: Curve) -> Line:
        values = getattr(curve, figure).tolist()
        return Line(f"{depth}+{depth}", curve.steps.tolist(), values, _color(curves, depth))

    return [
        line_plot(setting.title, "step", [line(*item) for item in curves[setting].items()], log, log, span)
        for setting in SETTINGS
    ]


def _over_depth(curves: Curves) -> list[str]:
    """A plot for each of some steps, all on one scale; depth as layers of each stack."""
    depths, shown = [float(depth) for depth in _depths(curves)], shown_steps(curves)
    values = [c.at(step) for by_depth in curves.values() for c in by_depth.values() for step in shown]
    known = [value for value in values if value > 0]

    def line(setting: Setting, step: int) -> Line:
        at = {depth: curve.at(step) for depth, curve in curves[setting].items()}
        color = DESIGN_COLORS[setting.block]
        return Line(setting.title, list(at), list(at.values()), color, dots=True, dashed=not setting.warmup)

    return [
        line_plot(
            f"after {step} step{'s' if step > 1 else ''}",
            "layers of each stack",
            [line(setting, step) for setting in SETTINGS],
            log_x=True,
            log_y=True,
            y_range=(min(known, default=1.0), max(known, default=1.0)),
            x_ticks=depths,
        )
        for step in shown
    ]


def _table(curves: Curves) -> str:
    head, rows = table(curves)
    first = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    cells = [
        "".join(f"<td{' class=number' if i > 1 else ''}>{html.escape(cell)}</td>" for i, cell in enumerate(row))
        for row in rows
    ]
    return f"<table><tr>{first}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
