"""Look into a checkpoint: parameters by name, with figures of those that are asked for."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pretrain.errors import CheckpointError
from pretrain.state.index import MOMENTS
from pretrain.state.reader import Checkpoint


@dataclass(frozen=True)
class Figures:
    """Of one parameter; L2 norms, over its fp32 master weights."""

    name: str
    shape: tuple[int, ...]
    norm: float
    mean: float
    largest: float
    """Largest magnitude."""
    moments: dict[str, float]
    """Norm of each moment; empty where the checkpoint has none."""


def choose(checkpoint: Checkpoint, layer: str | None, parameter: str | None) -> list[str]:
    """Names of the parameters of a layer (or of all below a dotted prefix), or that one parameter.

    Raises:
        CheckpointError: there is none; the message names the nearest.
    """
    names = checkpoint.index.names()
    if parameter is not None:
        found = [name for name in names if name == parameter]
    else:
        prefix = (layer or "").removesuffix(".")
        found = [name for name in names if not prefix or name == prefix or name.startswith(f"{prefix}.")]
    if found:
        return found
    asked = parameter or layer or ""
    known = names if parameter is not None else sorted({prefix for name in names for prefix in _prefixes(name)})
    near = difflib.get_close_matches(asked, known, n=1, cutoff=0.0)
    what = "parameter" if parameter is not None else "layer"
    raise CheckpointError(f"{checkpoint.folder}: it has no {what} {asked!r}; the nearest is {near[0]!r}")


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])


def figures(checkpoint: Checkpoint, names: list[str]) -> Iterator[Figures]:
    """One after the other; each reads the bytes of that parameter alone."""
    moments = [quantity for quantity in MOMENTS if checkpoint.has(quantity)]
    for name in names:
        weight = checkpoint.read(name)
        norms = {quantity: _norm(checkpoint.read(name, quantity)) for quantity in moments}
        largest = float(weight.abs().max()) if weight.numel() else 0.0
        yield Figures(name, tuple(weight.shape), _norm(weight), float(weight.mean()), largest, norms)


def _norm(values: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64))
