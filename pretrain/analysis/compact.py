"""Makes logged figures small enough for one page: thinned curves, compressed codes, JSON that every browser reads."""

from __future__ import annotations

import base64
import json
import math
import zlib
from typing import Any

import numpy as np

CODE_MISSING = 0
CODE_ZERO = 1
CODE_FIRST = 2
CODE_LAST = 65533
CODE_NEGATIVE_INFINITY = 65534
CODE_INFINITY = 65535
SPECIAL = {CODE_MISSING: math.nan, CODE_ZERO: 0.0, CODE_NEGATIVE_INFINITY: -math.inf, CODE_INFINITY: math.inf}
RELATIVE_STEP = 0.004  # between two codes of a logarithmic matrix: values are right to 0.2%
LEAST_LEVELS = 2000  # of one whose values lie close together
LINEAR_LEVELS = 8000  # codes over the range of a linear one


def short(value: float, digits: int = 6) -> float | None:
    """`value` rounded to `digits` significant digits; None if it is not finite (JSON has no word for it)."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def evenly(count: int, limit: int) -> np.ndarray:
    """At most `limit` (>= 2) of the indices 0 .. count-1, evenly spread, the first and the last among them."""
    if count <= limit:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, limit).round().astype(np.int64))


def thin_curve(values: np.ndarray, limit: int) -> np.ndarray:
    """Indices of about `limit` points of `values` [n], finite, that keep every peak and dip of the curve visible.

    Each of limit/2 equal pieces keeps its smallest and its largest value; the ends always stay.
    """
    count = len(values)
    if count <= limit:
        return np.arange(count)
    keep = {0, count - 1}
    for piece in np.array_split(np.arange(count), max(1, limit // 2 - 1)):
        keep.add(int(piece[values[piece].argmin()]))
        keep.add(int(piece[values[piece].argmax()]))
    return np.array(sorted(keep), dtype=np.int64)


def pack_matrix(values: np.ndarray) -> dict[str, Any]:
    """`values` [rows, columns] as 16-bit codes, compressed, in base64: 1.0 to 1.6 characters a value.

    Codes from `CODE_FIRST` on divide [low, high] into `levels` even steps: in the logarithm (`scale` "log") if nothing
    is negative, otherwise in the value ("linear"). The other codes stand for missing (NaN), zero, and the infinities.
    """
    values = np.asarray(values, dtype=np.float64)
    finite = values[np.isfinite(values)]
    log = bool((finite >= 0).all())
    coded = np.isfinite(values) & (values > 0) if log else np.isfinite(values)
    span = np.log(values[coded]) if log else values[coded]
    low, high = (float(span.min()), float(span.max())) if span.size else (0.0, 0.0)
    levels = LINEAR_LEVELS
    if log:
        levels = min(CODE_LAST - CODE_FIRST, max(LEAST_LEVELS, math.ceil((high - low) / RELATIVE_STEP)))
    codes = np.full(values.shape, CODE_MISSING, dtype=np.uint16)
    # halves, because high - low may overflow where both ends are near the largest float
    share = (span / 2 - low / 2) / (high / 2 - low / 2) if high > low else np.zeros_like(span)
    codes[coded] = CODE_FIRST + np.round(share * levels).astype(np.int64)
    if log:
        codes[values == 0] = CODE_ZERO
    codes[np.isposinf(values)] = CODE_INFINITY
    codes[np.isneginf(values)] = CODE_NEGATIVE_INFINITY
    return {
        "scale": "log" if log else "linear",
        "low": low,
        "high": high,
        "levels": levels,
        "rows": int(values.shape[0]),
        "columns": int(values.shape[1]),
        "codes": base64.b64encode(zlib.compress(_planes(codes), 6)).decode("ascii"),
    }


def _planes(codes: np.ndarray) -> bytes:
    """Codes [rows, columns] as what compresses well: differences from the row before, the sign in the lowest bit, all
    low bytes and then all high bytes."""
    change = np.diff(codes, axis=0, prepend=np.zeros((1, codes.shape[1]), dtype=np.uint16)).view(np.int16)
    folded = ((change << 1) ^ (change >> 15)).view(np.uint16)
    return (folded & 255).astype(np.uint8).tobytes() + (folded >> 8).astype(np.uint8).tobytes()


def unpack_matrix(packed: dict[str, Any]) -> np.ndarray:
    """The values [rows, columns] behind `pack_matrix`, float64; what the page's script does, for other readers."""
    planes = np.frombuffer(zlib.decompress(base64.b64decode(packed["codes"])), dtype=np.uint8).astype(np.uint16)
    low_bytes, high_bytes = planes.reshape(2, packed["rows"], packed["columns"])
    folded = low_bytes | high_bytes << 8
    codes = ((folded >> 1) ^ -(folded & 1)).cumsum(axis=0, dtype=np.uint16)
    share = (codes.astype(np.float64) - CODE_FIRST) / packed["levels"]
    values = packed["low"] * (1 - share) + packed["high"] * share
    if packed["scale"] == "log":
        values = np.exp(values)
    for code, value in SPECIAL.items():
        values[codes == code] = value
    return values


def plain(value: Any) -> Any:
    """`value` made of what JSON knows: non-finite numbers as their names, anything unknown as its text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | int | float):
        return value
    return str(value)


def script_json(value: Any) -> str:
    """Strict JSON that is safe inside a <script> element: no `<`, so no `</script>` and no `<!--`."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
