"""The depth signals of all runs as codes that fit into what is left of the page."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from pretrain.analysis.compact import evenly, pack_matrix
from pretrain.analysis.recorded_run import LayerSignal, RecordedRun, number

HEADS_SHARE = 0.3  # of the room, for the single heads
LEAST_STEPS = 2
TELLING = ("alert", "skip", "rollback", "stop")
"""Events before which the sampled step is kept."""
LEAST_ROOM = 200_000

Packed = list[dict[str, Any]]


def packed_depth(runs: list[RecordedRun], room: int, notes: list[list[str]]) -> list[Packed]:
    """Each run's depth signals, thinned to evenly spread sampled steps; real samples stay, none is mixed.

    Args:
        room: characters that all of them together may take.
        notes: a list a run, to which is added what was left out.
    """
    room = max(room, LEAST_ROOM)
    heads, heads_size = _fitted(runs, int(room * HEADS_SHARE), _heads)
    values, size = _fitted(runs, room - heads_size, _values)
    if size + heads_size > room:  # so many runs and layers that two steps of each are too much
        heads = [[] for _ in runs]
    if size > room:
        notes[0].append("so many runs and layers make the page larger than 5 MB; give fewer runs")
    for run, own_values, own_heads, told in zip(runs, values, heads, notes, strict=True):
        _tell(run, own_values, own_heads, told)
    return [own_values + own_heads for own_values, own_heads in zip(values, heads, strict=True)]


def _values(signal: LayerSignal) -> np.ndarray:
    return signal.values


def _heads(signal: LayerSignal) -> np.ndarray | None:
    """[n, layers * heads]."""
    return None if signal.heads is None else signal.heads.reshape(len(signal.steps), -1)


def _fitted(
    runs: list[RecordedRun], room: int, part: Callable[[LayerSignal], np.ndarray | None]
) -> tuple[list[Packed], int]:
    """As many sampled steps as fit into `room` characters, and how many characters they take."""
    most = max((len(sampled_steps(run)) for run in runs), default=0)
    limit = most
    # A first guess saves packing what does not fit by far: a value takes 1.0 to 1.6 characters.
    cells = sum(cell.size for run in runs for signal in run.layers if (cell := part(signal)) is not None)
    if cells:
        limit = max(LEAST_STEPS, min(most, int(most * room / cells)))
    while True:
        packed = [_packed(run, limit, part) for run in runs]
        size = sum(_size(matrix) for matrices in packed for matrix in matrices)
        if size <= room or limit <= LEAST_STEPS:
            return packed, size
        limit = max(LEAST_STEPS, min(limit - 1, int(limit * room / size * 0.98)))


def _packed(run: RecordedRun, limit: int, part: Callable[[LayerSignal], np.ndarray | None]) -> Packed:
    kept = _kept(run, max(LEAST_STEPS, limit))
    return [_coded(signal, cells, kept) for signal in run.layers if (cells := part(signal)) is not None]


def _kept(run: RecordedRun, limit: int) -> np.ndarray:
    """At most `limit` sampled steps: the last ones before something went wrong, and others evenly spread."""
    steps = sampled_steps(run)
    if len(steps) <= limit:
        return steps
    found = {number(event.get("step")) for event in run.events if event.get("event") in TELLING}
    wrong = np.array(sorted(step for step in found if math.isfinite(step)))
    before = np.unique(np.searchsorted(steps, wrong, side="right").clip(1) - 1)
    before = before[evenly(len(before), limit // 4)] if limit >= 8 else before[:0]
    return steps[np.union1d(before, evenly(len(steps), limit - len(before)))]


def sampled_steps(run: RecordedRun) -> np.ndarray:
    """All steps at which any depth signal was sampled, rising."""
    return np.unique(np.concatenate([signal.steps for signal in run.layers])) if run.layers else np.empty(0, np.int64)


def _coded(signal: LayerSignal, cells: np.ndarray, kept: np.ndarray) -> dict[str, Any]:
    rows = np.isin(signal.steps, kept)
    rows[-1] = True  # the newest sample of a signal that is not sampled with the others
    return {
        "signal": signal.signal,
        "group": signal.group,
        "heads": cells.shape[1] // signal.layers if cells is not signal.values else None,
        "at": signal.steps[rows].tolist(),
        "sampled": len(signal.steps),
        **pack_matrix(cells[rows]),
    }


def _size(matrix: dict[str, Any]) -> int:
    return len(matrix["codes"]) + 250  # its name and range in JSON; steps are stored once for all, see `shared_steps`


def shared_steps(runs: list[Packed]) -> list[list[int]]:
    """Replace each matrix' list of steps by its place in the list of distinct ones that is returned."""
    places: dict[tuple[int, ...], int] = {}
    for matrix in (matrix for matrices in runs for matrix in matrices):
        matrix["at"] = places.setdefault(tuple(matrix["at"]), len(places))
    return [list(steps) for steps in places]


def _tell(run: RecordedRun, values: Packed, heads: Packed, notes: list[str]) -> None:
    sampled = len(sampled_steps(run))
    shown = max((matrix["rows"] for matrix in values), default=0)
    if shown < sampled:
        notes.append(
            f"depth signals: {shown:,} of {sampled:,} sampled steps are shown, evenly spread and before alerts"
        )
    if not any(signal.heads is not None for signal in run.layers):
        return
    shown_heads = max((matrix["rows"] for matrix in heads), default=0)
    if shown_heads < shown:
        notes.append(f"single heads: {shown_heads:,} of {sampled:,} sampled steps are shown; the worst head in all")
