"""Weight initialisation, seeded by (seed, parameter name): the same weights in every layout.

A module that owns parameters has `initialise(generator)`, where `generator(name)` gives the random source of
its parameter `name`. Nothing draws from torch's global generator.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

GeneratorFor = Callable[[str], torch.Generator]
Initialiser = Callable[[Tensor, torch.Generator], None]


@runtime_checkable
class Initialisable(Protocol):
    """A module that sets its own parameters."""

    def initialise(self, generator: GeneratorFor) -> None: ...


def xavier_normal(gain: float = 1.0) -> Initialiser:
    """N(0, gain^2 * 2 / (fan_in + fan_out)) on an (out, in) matrix (Glorot & Bengio 2010, eq. 16's normal form)."""

    def fill(weight: Tensor, generator: torch.Generator) -> None:
        fan_out, fan_in = weight.shape
        weight.normal_(0.0, gain * math.sqrt(2.0 / (fan_in + fan_out)), generator=generator)

    return fill


def normal(std: float) -> Initialiser:
    """N(0, std^2)."""

    def fill(weight: Tensor, generator: torch.Generator) -> None:
        weight.normal_(0.0, std, generator=generator)

    return fill


def named_generator(seed: int, name: str) -> torch.Generator:
    """The random source of one parameter: a CPU generator seeded by a hash of (seed, canonical name)."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@torch.no_grad()
def initialise(module: nn.Module, prefix: str, seed: int) -> None:
    """Set every parameter below `module`, whose canonical name starts with `prefix`.

    Raises:
        TypeError: a submodule owns parameters but has no `initialise`; leaving them unset would be silent.
    """
    for path, child in module.named_modules():
        if isinstance(child, Initialisable):
            owner = ".".join(part for part in (prefix, path) if part)
            child.initialise(lambda name, owner=owner: named_generator(seed, f"{owner}.{name}"))  # type: ignore[misc]
        elif any(True for _ in child.parameters(recurse=False)):
            raise TypeError(f"{type(child).__name__} at {prefix}.{path} owns parameters but cannot initialise them")
