"""Types and ranges of values that a file gives. A bool is no number here, though Python takes it for one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MOST = 2**53
"""Largest count: all integers up to it are exact in a float too, and no run comes near it."""


def mapping(value: Any, what: str) -> Mapping[str, Any]:
    """Raises ValueError unless it is a mapping of names; `what` names it in the message."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {kind(value)}, not a mapping")
    return value


def sequence(value: Any, what: str) -> Sequence[Any]:
    """Raises ValueError unless it is a list."""
    if not isinstance(value, list):
        raise ValueError(f"{what} is {kind(value)}, not a list")
    return value


def text(value: Any, what: str) -> str:
    """Raises ValueError unless it is text."""
    if not isinstance(value, str):
        raise ValueError(f"{what} is {kind(value)}, not text")
    return value


def count(value: Any, what: str) -> int:
    """Raises ValueError unless it is a whole number from 0 to MOST."""
    if type(value) is not int:
        raise ValueError(f"{what} is {kind(value)}, not a whole number")
    if not 0 <= value <= MOST:
        raise ValueError(f"{what} is {'negative' if value < 0 else 'too large'}")
    return value


def number(value: Any, what: str) -> float:
    """Raises ValueError unless it is a number; it may be NaN or infinite."""
    if type(value) not in (int, float) or (type(value) is int and abs(value) > MOST):
        raise ValueError(f"{what} is {kind(value)}, not a number")
    return float(value)


def duration(value: Any, what: str) -> float:
    """Raises ValueError unless it is a finite number from 0 on."""
    if not math.isfinite(number(value, what)) or value < 0:
        raise ValueError(f"{what} is negative or not finite")
    return float(value)


def numbers(value: Any, what: str) -> list[float]:
    """Raises ValueError unless it is a list of numbers."""
    return [number(item, what) for item in sequence(value, what)]


def maybe(check: Callable[[Any, str], Any], value: Any, what: str) -> Any:
    """None, or what `check` makes of the value."""
    return None if value is None else check(value, what)


def kind(value: Any) -> str:
    """What a value is, in words."""
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), "another number")
