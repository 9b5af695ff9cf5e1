"""Turns what the schema refuses into one line that names the key, the value, and the mend."""

from __future__ import annotations

import difflib
import json
import re
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from pretrain.config.describe import allowed_values, key_paths, sections_of
from pretrain.config.schema import Experiment
from pretrain.registry import Section


def nearest(word: str, candidates: Sequence[str], cutoff: float = 0.6) -> str | None:
    """Return the candidate most like `word`, or None."""
    found = difflib.get_close_matches(word, candidates, n=1, cutoff=cutoff)
    return found[0] if found else None


def did_you_mean(word: object, candidates: Sequence[str]) -> str:
    """Return "did you mean 'X'? known: ...", or only the list if nothing is near."""
    near = nearest(word, candidates) if isinstance(word, str) else None
    return (f"did you mean {near!r}? " if near else "") + f"known: {', '.join(sorted(candidates)) or 'none'}"


def validation_message(error: ValidationError, data: dict[str, Any]) -> str:
    """Return one line for the first thing that the schema refused in `data`, and how many more there are."""
    problems = list(dict.fromkeys(_problem_message(problem, data) for problem in error.errors(include_url=False)))
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return problems[0] + more


def _problem_message(problem: Any, data: dict[str, Any]) -> str:
    path = _path_in_data(problem["loc"], data)
    if problem["type"] == "missing":  # an item of a list that is too short: show the list
        path = path[:-1]
    value = _lookup(data, path)
    name = dotted(path)
    if problem["type"] == "extra_forbidden":
        return unknown_key_message(dotted(path + _first_leaf(value)), data)
    if problem["type"] == "union_tag_invalid":
        kinds = [kind.strip(" '") for kind in problem["ctx"]["expected_tags"].split(",")]
        return f"{name}.kind = {shown(value['kind'])} is not a known kind; {did_you_mean(value['kind'], kinds)}"
    if problem["type"] == "union_tag_not_found":
        return f"{name} has no `kind`; set {name}.kind"
    if problem["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return f"{name} = {shown(value)} is not a section; set keys below it, such as {_an_example_below(name)}"
    field = _field_at(path, data)
    text = problem["msg"].removeprefix("Value error, ").replace("Input should", "should")
    allowed = f"allowed: {allowed_values(field).replace('`', '')}" if field else text[0].lower() + text[1:]
    if problem["type"] in ("string_pattern_mismatch", "string_too_long") and field and field.description:
        text = re.sub(r"\s+", " ", field.description)  # in words: nobody should have to read the pattern
        allowed = f"write the {text[0].lower() + text[1:].rstrip('.')}"
    return f"{name} = {shown(value)} is not valid; {allowed}"


def unknown_key_message(key: str, data: dict[str, Any]) -> str:
    """Return the line for an unknown dotted key, with the nearest known one."""
    section, _, leaf = key.rpartition(".")
    known = key_paths()
    prefix = f"{section}." if section else ""
    here = list(dict.fromkeys(p.removeprefix(prefix).split(".")[0] for p in known if p.startswith(prefix)))
    kind = _lookup(data, tuple(section.split("."))) if section else None
    kind = kind.get("kind") if isinstance(kind, dict) else None
    if key in known and kind:
        return f"unknown key {key!r}: {section}.kind = {kind!r} has no such key; leave it out or set another kind"
    if key in known:
        return f"unknown key {key!r}: in a file, nest it ({key.replace('.', ': ')}) in place of a dotted name"
    if near := nearest(leaf, here):
        return f"unknown key {key!r}; did you mean {prefix + near!r}?"
    by_leaf = {path.rpartition(".")[2]: path for path in known}
    if near := nearest(key, known, 0.8) or by_leaf.get(nearest(leaf, list(by_leaf), 0.75) or ""):
        return f"unknown key {key!r}; did you mean {near!r}?"
    if here:
        return f"unknown key {key!r}; keys of {section or 'the top level'}: {', '.join(here)}"
    return f"unknown key {key!r}; sections: {', '.join(Experiment.model_fields)}"


def shown(value: Any) -> str:
    """Return the value as a message shows it: text in quotes, null, true and false as in YAML."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def dotted(path: Sequence[str | int]) -> str:
    """Return `a.b[0]` for ("a", "b", 0)."""
    name = ""
    for part in path:
        name += f"[{part}]" if isinstance(part, int) else f".{part}"
    return name.removeprefix(".")


def _path_in_data(loc: Sequence[str | int], data: Any) -> tuple[str | int, ...]:
    """Return the error's place without the kinds that pydantic puts between a choice and its keys."""
    path: list[str | int] = []
    node = data
    for part in loc:
        if isinstance(node, dict) and part not in node and node.get("kind") == part:
            continue
        path.append(part)
        node = _lookup(node, (part,))
    return tuple(path)


def _lookup(node: Any, path: Sequence[str | int]) -> Any:
    for part in path:
        if isinstance(node, dict):
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        else:
            return None
    return node


def _first_leaf(value: Any) -> tuple[str, ...]:
    """Return the path to the first leaf below an unknown section, so that the message names what was typed."""
    path: list[str] = []
    while isinstance(value, dict) and value:
        key = next(iter(value))
        path.append(str(key))
        value = value[key]
    return tuple(path)


def _field_at(path: Sequence[str | int], data: dict[str, Any]) -> Any:
    """Return the schema's field at `path`, following the kinds that `data` chose; None inside of a list."""
    section: type[Section] = Experiment
    node: Any = data
    for position, part in enumerate(path):
        field = section.model_fields.get(str(part))
        if field is None or position == len(path) - 1:
            return field
        node = _lookup(node, (part,))
        variants = sections_of(field.annotation)
        if not variants:
            return field if typing.get_origin(field.annotation) in (tuple, list) else None
        kind = node.get("kind") if isinstance(node, dict) else None
        chosen = [v for v in variants if kind is None or "kind" not in v.model_fields or _kind(v) == kind]
        if not chosen:
            return None
        section = chosen[0]
    return None


def _kind(section: type[Section]) -> Any:
    return section.model_fields["kind"].default


def _an_example_below(name: str) -> str:
    return next((path for path in key_paths() if path.startswith(name + ".")), f"{name}.KEY")
