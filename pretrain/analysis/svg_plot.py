"""A line plot as an SVG element: no script, and colours of the page it stands in (see report.css)."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 430, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 30, 44
DECADE = (1, 2, 5)


@dataclass(frozen=True)
class Line:
    """A curve; points that are not finite are gaps, and so is what is not positive on a logarithmic axis."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    color: str
    dots: bool = False
    dashed: bool = False


class _Axis:
    """Maps values to pixels [low, high]."""

    def __init__(self, values: Sequence[float], low: float, high: float, log: bool, ticks: Sequence[float] | None):
        self.log, self.low, self.high = log, low, high
        usable = [value for value in values if math.isfinite(value) and (value > 0 or not log)] or [1.0]
        self.first, self.last = self._scale(min(usable)), self._scale(max(usable))
        if self.last - self.first < 1e-9:
            self.first, self.last = self.first - 0.5, self.last + 0.5
        self.ticks = ticks or (self._log_ticks() if log else self._linear_ticks())

    def _scale(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def at(self, value: float) -> float | None:
        """The pixel; None where the value has none."""
        if not math.isfinite(value) or (self.log and value <= 0):
            return None
        share = (self._scale(value) - self.first) / (self.last - self.first)
        return self.low + share * (self.high - self.low)

    def _log_ticks(self) -> list[float]:
        powers = range(math.floor(self.first), math.ceil(self.last) + 1)
        factors = DECADE if self.last - self.first < 2 else (1,)
        ticks = [factor * 10.0**power for power in powers for factor in factors]
        return [tick for tick in ticks if self.first - 0.01 <= math.log10(tick) <= self.last + 0.01]

    def _linear_ticks(self) -> list[float]:
        rough = (self.last - self.first) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        count = math.floor(self.last / step + 1e-9) - math.ceil(self.first / step - 1e-9) + 1
        return [(math.ceil(self.first / step - 1e-9) + i) * step for i in range(count)]


def line_plot(
    title: str,
    x_label: str,
    lines: Sequence[Line],
    log_x: bool = False,
    log_y: bool = False,
    y_range: tuple[float, float] | None = None,
    x_ticks: Sequence[float] | None = None,
) -> str:
    """One plot with its title.

    Args:
        y_range: what the axis spans at least, so that plots side by side can be compared.
        x_ticks: where the x axis is labelled; default: round numbers.
    """
    x = _Axis([value for line in lines for value in line.xs], LEFT, WIDTH - RIGHT, log_x, x_ticks)
    ys = [value for line in lines for value in line.ys] + list(y_range or ())
    y = _Axis(ys, HEIGHT - BOTTOM, TOP, log_y, None)
    parts = [f'<text x="{LEFT}" y="16" class="title">{html.escape(title)}</text>']
    for tick in y.ticks:
        at = y.at(tick)
        parts.append(f'<path class="rule" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{at:.1f}" dy="0.32em" class="end">{tick:g}</text>')
    for tick in x.ticks:
        parts.append(f'<text x="{x.at(tick):.1f}" y="{HEIGHT - BOTTOM + 18}" class="middle">{tick:g}</text>')
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" class="middle">{html.escape(x_label)}</text>'
    )
    parts += [_curve(line, x, y) for line in lines]
    label = html.escape(f"{title} over {x_label}", quote=True)
    return f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _curve(line: Line, x: _Axis, y: _Axis) -> str:
    points = [(x.at(a), y.at(b)) for a, b in zip(line.xs, line.ys, strict=True)]
    path, down = [], False
    for px, py in points:
        down = down and px is not None and py is not None
        if px is not None and py is not None:
            path.append(f"{'L' if down else 'M'}{px:.1f} {py:.1f}")
            down = True
    dash = ' stroke-dasharray="5 4"' if line.dashed else ""
    drawn = f'<path class="line" stroke="{line.color}"{dash} d="{"".join(path)}"/>'
    if line.dots:
        drawn += "".join(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.4" fill="{line.color}"/>'
            for px, py in points
            if px is not None and py is not None
        )
    return f"<g><title>{html.escape(line.name)}</title>{drawn}</g>"
