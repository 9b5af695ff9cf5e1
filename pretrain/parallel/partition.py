"""Where a list of layers is cut into pipeline stages: a pure function of the layers' costs."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

BORDER_TOLERANCE = 0.05
"""How much slower (as a share) the slowest stage may become for a cut at a preferred border."""


def cuts_between(blocks: Sequence[bool], preferred_cuts: Sequence[int] = ()) -> list[int]:
    """One place to cut between each two neighbouring blocks, so that every run of layers holds a block.

    What lies between two blocks (norms, embeddings) belongs to the one that follows, unless a preferred cut says
    otherwise.

    Args:
        blocks: of each layer, whether it is a block.
        preferred_cuts: indices before which a cut is preferred.
    """
    places = [index for index, is_block in enumerate(blocks) if is_block]
    return [
        next((cut for cut in preferred_cuts if before < cut <= after), before + 1)
        for before, after in itertools.pairwise(places)
    ]


def stage_bounds(costs: Sequence[float], stages: int, preferred_cuts: Sequence[int] = ()) -> list[int]:
    """Cut layers into `stages` consecutive, non-empty runs whose costliest is as cheap as possible.

    A cut at one of `preferred_cuts` (where the least crosses a stage border) is taken where it costs at most
    BORDER_TOLERANCE more than the optimum.

    Args:
        costs: one non-negative cost a layer, in order.
        stages: at most len(costs).
        preferred_cuts: indices before which a cut is preferred.

    Returns:
        stages + 1 rising indices; stage s holds layers bounds[s]..bounds[s+1]-1.

    Raises:
        ValueError: more stages than layers.
    """
    if not 1 <= stages <= len(costs):
        raise ValueError(f"cannot cut {len(costs)} layers into {stages} stages")
    best = _bottleneck_optimal(costs, 0, len(costs), stages)
    limit = _bottleneck(costs, best) * (1 + BORDER_TOLERANCE)
    for cut in preferred_cuts:
        left, right = sum(costs[:cut]), sum(costs[cut:])
        candidates = [
            _bottleneck_optimal(costs, 0, cut, before)[:-1]
            + _bottleneck_optimal(costs, cut, len(costs), stages - before)
            for before in range(1, stages)
            if before <= cut
            and stages - before <= len(costs) - cut
            and max(left / before, right / (stages - before)) <= limit  # else hopeless, however well they are cut
        ]
        if candidates:
            with_cut = min(candidates, key=lambda bounds: _bottleneck(costs, bounds))
            if _bottleneck(costs, with_cut) <= limit:
                return with_cut
    return best


def _bottleneck(costs: Sequence[float], bounds: Sequence[int]) -> float:
    return max(sum(costs[a:b]) for a, b in itertools.pairwise(bounds))


def _bottleneck_optimal(costs: Sequence[float], start: int, stop: int, stages: int) -> list[int]:
    """Bounds of layers start..stop-1 with the least bottleneck, by bisection over the bottleneck's value."""
    prefix = [0.0, *itertools.accumulate(costs[start:stop])]
    low, high = max(prefix[-1] / stages, max(costs[start:stop])), prefix[-1]
    for _ in range(60):
        middle = (low + high) / 2
        if _fill(prefix, stages, middle) is None:
            low = middle
        else:
            high = middle
    filled = _fill(prefix, stages, high * (1 + 1e-12))
    assert filled is not None, "the sum of all costs always fits"
    return [start + bound for bound in filled]


def _fill(prefix: Sequence[float], stages: int, limit: float) -> list[int] | None:
    """Greedy bounds with no stage above `limit`, each stage non-empty; None if there are none."""
    layers = len(prefix) - 1
    bounds = [0]
    for stage in range(stages):
        last_possible = layers - (stages - stage - 1)
        end = min(bisect.bisect_right(prefix, prefix[bounds[-1]] + limit) - 1, last_possible)
        if end <= bounds[-1]:
            return None
        bounds.append(end)
    return bounds if bounds[-1] == layers else None
