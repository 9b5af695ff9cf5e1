"""Hashes that are the same on every machine and in every process (Python's own `hash` is not)."""

from __future__ import annotations

import hashlib


def digest(*parts: str | int | float) -> str:
    """SHA-256 of the parts, as 64 hex digits. ("a", "b") and ("ab",) differ."""
    return _hash(parts).hexdigest()


def hash64(*parts: str | int | float) -> int:
    """The first 64 bits of `digest`, as an integer in 0 .. 2**64 - 1."""
    return int.from_bytes(_hash(parts).digest()[:8], "little")


def hash128(*parts: str | int | float) -> int:
    """The first 128 bits of `digest`, as an integer; the key of a Philox generator."""
    return int.from_bytes(_hash(parts).digest()[:16], "little")


def _hash(parts: tuple[str | int | float, ...]) -> hashlib._Hash:
    state = hashlib.sha256()
    for part in parts:
        raw = repr(part).encode()
        state.update(len(raw).to_bytes(8, "little"))
        state.update(raw)
    return state
