"""Line plots in characters: braille dots, or asterisks where the terminal knows none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.text import Text

BRAILLE = 0x2800
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bit of the dot in row 0..3 and column 0..1 of a character."""
LABEL = 8
LOG_FROM = 20.0
"""Ratio of the largest to the smallest value from which the axis is logarithmic."""


@dataclass(frozen=True)
class Line:
    """xs [n] rising, ys [n]; what is not finite is left out."""

    xs: np.ndarray
    ys: np.ndarray
    style: str = ""


def plot(lines: Sequence[Line], width: int, height: int, unicode: bool) -> list[Text]:
    """`height` lines of text, `width` wide: the y axis' labels, the lines, and the ends of the x axis below."""
    rows, columns = height - 1, width - LABEL - 1
    points = [_shown(line) for line in lines]
    values = np.concatenate([ys for _, ys in points]) if points else np.empty(0)
    if not values.size or rows < 2 or columns < 4:
        return [Text("nothing to show yet".center(width)[:width]), *(Text() for _ in range(height - 1))]
    low, high = float(values.min()), float(values.max())
    log = low > 0 and high / low > LOG_FROM
    if log:
        points = [(xs, np.log(ys)) for xs, ys in points]
    ends = (math.log(low), math.log(high)) if log else (low, high)
    xs = np.concatenate([xs for xs, _ in points])
    first, last = float(xs.min()), float(xs.max())
    cells = Cells(columns, rows, unicode)
    for (own, ys), line in zip(points, lines, strict=True):
        cells.draw(_scaled(own, first, last), _scaled(ys, *ends), line.style)
    labels = _labels(low, high, rows, log)
    text = [Text(f"{labels.get(row, ''):>{LABEL}} ").append_text(cells.row(row)) for row in range(rows)]
    return [*text, _axis(first, last, columns, "log scale" if log else "")]


def _shown(line: Line) -> tuple[np.ndarray, np.ndarray]:
    keep = np.isfinite(line.ys)
    return line.xs[keep], line.ys[keep]


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    # halves, because high - low may overflow
    return (values / 2 - low / 2) / (high / 2 - low / 2) if high > low else np.full(len(values), 0.5)


def _labels(low: float, high: float, rows: int, log: bool) -> dict[int, str]:
    if high == low:
        return {rows // 2: short(low)}
    values = {0: high, rows - 1: low}
    if rows > 4:
        values[rows // 2] = math.sqrt(low * high) if log else low / 2 + high / 2
    return {row: short(value, digits=4 if short(high) != short(low) else 6) for row, value in values.items()}


def _axis(first: float, last: float, columns: int, remark: str) -> Text:
    """The ends of the x axis, between them a remark, as far as there is room."""
    left, right = f"{first:,.0f}", f"{last:,.0f}"
    gap = columns - len(left) - len(right)
    middle = remark.center(gap) if len(remark) < gap else " " * gap
    return Text(" " * (LABEL + 1) + (f"{left}{middle}{right}" if gap > 0 and last > first else left), style="dim")


def short(value: float, digits: int = 4) -> str:
    """A number in at most 8 characters, as many significant digits as go into them, at most `digits`."""
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        formats = [".1e", ".0e"]
    else:
        formats = [",.0f"] if abs(value) >= 1000 else [f".{count}g" for count in range(digits, 1, -1)]
    return next(text for form in formats if len(text := format(value, form)) <= LABEL)


class Cells:
    """A field of characters, each of 4 x 2 dots, with the style of the last line that went through it."""

    def __init__(self, columns: int, rows: int, unicode: bool):
        self.columns, self.rows, self.unicode = columns, rows, unicode
        self.across, self.down = (2, 4) if unicode else (1, 1)
        self.bits = np.zeros((rows, columns), dtype=np.int64)
        self.styles: dict[tuple[int, int], str] = {}

    def draw(self, xs: np.ndarray, ys: np.ndarray, style: str) -> None:
        """Points in 0..1 as a line; of many points in a column all heights between the lowest and the highest."""
        width, height = self.columns * self.across, self.rows * self.down
        at = np.round(xs * (width - 1)).astype(int)
        up = np.round((1 - ys) * (height - 1)).astype(int)
        before: tuple[int, int] | None = None
        for x in np.unique(at).tolist():
            own = up[at == x].tolist()
            if before is not None:
                self._connect(before, (x, own[0]), style)
            self._column(x, min(own), max(own), style)
            before = x, own[-1]

    def _connect(self, start: tuple[int, int], end: tuple[int, int], style: str) -> None:
        (x0, y0), (x1, y1) = start, end
        y = y0
        for x in range(x0 + 1, x1 + 1):
            goal = round(y0 + (x - x0) / (x1 - x0) * (y1 - y0))
            near = goal if abs(goal - y) <= 1 else y + (1 if goal > y else -1)
            self._column(x, min(near, goal), max(near, goal), style)
            y = goal

    def _column(self, x: int, low: int, high: int, style: str) -> None:
        for y in range(low, high + 1):
            self._dot(x, y, style)

    def _dot(self, x: int, y: int, style: str) -> None:
        row, column = y // self.down, x // self.across
        self.bits[row, column] |= DOTS[y % 4][x % 2] if self.unicode else 1
        self.styles[row, column] = style

    def row(self, row: int) -> Text:
        text = Text()
        for column, bits in enumerate(self.bits[row]):
            sign = chr(BRAILLE + bits) if self.unicode else "*"
            text.append(sign if bits else " ", style=self.styles.get((row, column), ""))
        return text
