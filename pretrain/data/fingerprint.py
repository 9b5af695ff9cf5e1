"""Fingerprints that can say what differs: named parts in one line of text."""

from __future__ import annotations

from collections.abc import Mapping

_BETWEEN = "; "


def join(parts: Mapping[str, str | int | float]) -> str:
    """`name=value; name=value`, in the order given. Values must not contain "; "."""
    return _BETWEEN.join(f"{name}={value}" for name, value in parts.items())


def differences(saved: str, now: str) -> list[str]:
    """One text for each part that is not the same: `name: SAVED became NOW`."""
    old, new = _split(saved), _split(now)
    names = list(dict.fromkeys([*old, *new]))
    return [
        f"{name}: {old.get(name, 'nothing')} became {new.get(name, 'nothing')}"
        for name in names
        if old.get(name) != new.get(name)
    ]


def _split(text: str) -> dict[str, str]:
    return {name: value for name, _, value in (part.partition("=") for part in text.split(_BETWEEN))}
