"""training.json: what a checkpoint keeps beside weights and moments, each value of its type and range."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pretrain.state.bounded import BadFile, read_json
from pretrain.state.values import count, duration, mapping, maybe, number, sequence, text

Check = Callable[[Any, str], Any]


def read_training(path: Path, step: int | None) -> dict[str, Any]:
    """The training state of the checkpoint of `step` (None: of any). Parts may be missing; what is there is sound.

    Raises:
        BadFile: the file cannot be read, or a value is of another type, out of range, or of another step.
    """
    try:
        state = dict(mapping(read_json(path), "it"))
        _check(state, STATE, "")
        for where, part in (("step", state), ("progress.step", state.get("progress", {}))):
            if step is not None and part.get("step", step) != step:
                raise ValueError(f"{where} is {part['step']}, the checkpoint is of step {step}")
    except ValueError as error:
        raise BadFile(f"damaged ({error})") from None
    return state


def lacks(state: Mapping[str, Any]) -> str:
    """What a resume needs and the state does not have, as a dotted name; empty if it has all."""
    for name in NEEDED:
        part: Any = state
        for key in name.split("."):
            if key not in part:
                return name
            part = part[key]
    return ""


def _check(values: Mapping[str, Any], checks: Mapping[str, Check], where: str) -> None:
    for key, check in checks.items():
        if key in values:
            check(values[key], f"{where}{key}")


def _ranges(value: Any, what: str) -> None:
    for pair in sequence(value, what):
        first, *rest = (count(end, what) for end in sequence(pair, what)) if pair else (0,)
        if len(rest) != 1 or first >= rest[0]:
            raise ValueError(f"{what} has an entry that is no range [first, end] with first < end")


def _line(value: Any, what: str) -> None:
    if len(text(value, what).splitlines()) > 1:
        raise ValueError(f"{what} has more than one line")


def _numbers(value: Any, what: str) -> None:
    for key, item in mapping(value, what).items():
        number(item, f"{what}.{key}")


def _mappings(value: Any, what: str) -> None:
    for key, item in mapping(value, what).items():
        mapping(item, f"{what}.{key}")


def _part(checks: Mapping[str, Check]) -> Check:
    return lambda value, what: _check(mapping(value, what), checks, f"{what}.")


PROGRESS: dict[str, Check] = {
    **dict.fromkeys(("step", "samples", "tokens", "skipped", "nonfinite"), count),
    "seconds": duration,
    "loss": partial(maybe, number),
}
DATA: dict[str, Check] = {"samples_consumed": count, "skip_ranges": _ranges, "fingerprint": _line}
STATE: dict[str, Check] = {
    "step": count,
    "optimizer_steps": count,
    "progress": _part(PROGRESS),
    "data": _part(DATA),
    "loss_scaler": _numbers,
    "callbacks": _mappings,
}
NEEDED = ("progress.step", *(f"data.{key}" for key in DATA), "optimizer_steps", "callbacks")
"""Of a resume."""
