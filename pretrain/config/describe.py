"""The schema as text: every key with its type, default and meaning; `docs/configuration.md` is made from it.

`python -m pretrain.config.describe > docs/configuration.md` writes the page again; a test asserts that it is current.
"""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic.fields import FieldInfo

from pretrain.config.schema import Experiment
from pretrain.registry import Section


@dataclass(frozen=True)
class Key:
    """One key of the schema.

    Attributes:
        path: dotted name, such as `model.block.kind`.
        allowed: what it takes, in words.
        default: its default as YAML would write it.
        text: its documentation.
        kind: the variant that it belongs to; None for keys that every experiment has.
    """

    path: str
    allowed: str
    default: str
    text: str
    kind: str | None = None


def sections_of(annotation: Any) -> tuple[type[Section], ...]:
    """Return the section classes that a field's annotation may hold: none, one, or one for each kind."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return (annotation,)
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return sections_of(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return tuple(section for member in typing.get_args(annotation) for section in sections_of(member))
    return ()


def iterate_keys(section: type[Section] = Experiment, prefix: str = "", kind: str | None = None) -> Iterator[Key]:
    """Yield every leaf key below `section`, those of all kinds included, in the order of the schema."""
    for name, field in section.model_fields.items():
        path = prefix + name
        variants = sections_of(field.annotation)
        if not variants:
            yield Key(path, allowed_values(field), _yaml(field.get_default()), _text(name, field), kind)
        for variant in variants:
            yield from iterate_keys(variant, path + ".", _kind_of(variant) or kind)


def key_paths() -> list[str]:
    """Return the dotted names of all keys, without duplicates, in the order of the schema."""
    return list(dict.fromkeys(key.path for key in iterate_keys()))


def allowed_values(field: FieldInfo) -> str:
    """Say in words what a field takes: its type and its limits."""
    return _type_in_words(field.annotation, field.metadata)


def _type_in_words(annotation: Any, metadata: typing.Sequence[Any] = ()) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _type_in_words(arguments[0], [*metadata, *arguments[1:]])
    if origin in (typing.Union, types.UnionType):
        words = [_type_in_words(member, metadata) for member in arguments if member is not type(None)]
        return " or ".join(words) + (" or null" if type(None) in arguments else "")
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (tuple, list):
        if arguments[-1] is Ellipsis or origin is list:
            return f"list of {_type_in_words(arguments[0])}"
        return f"list of {len(arguments)} x {_type_in_words(arguments[0])}"
    word = {int: "integer", float: "number", str: "text", bool: "true or false"}.get(annotation, str(annotation))
    limits = " and ".join(_limits(metadata))
    return f"{word} {limits}" if limits else word


def _limits(metadata: typing.Sequence[Any]) -> Iterator[str]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _limits(item.metadata)
        else:
            signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
            yield from (f"{sign} {getattr(item, name)}" for name, sign in signs.items() if hasattr(item, name))


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(_yaml(item) for item in value)}]"
    if isinstance(value, str) and (value == "" or (not value[0].isalnum() and value[0] != "~")):
        return json.dumps(value)
    return str(value)


def _text(name: str, field: FieldInfo) -> str:
    return re.sub(r"\s+", " ", field.description or ("Chooses this variant." if name == "kind" else ""))


def _kind_of(section: type[Section]) -> str | None:
    return section.model_fields["kind"].default if "kind" in section.model_fields else None


HEAD = """\
# Configuration

Every key of an experiment, made from the schema by `python -m pretrain.config.describe`.

An experiment is put together from layers, and each layer replaces keys of the ones before it: the defaults below, the
recipe that `base:` names, the recipe itself (`--recipe NAME` or `--recipe FILE.yaml`), its `tiny:` section with
`--tiny`, and `key.path=value` on the command line. A value is written as in YAML: `optimizer.lr=2e-3`,
`optimizer.betas=[0.9,0.95]`, `train.stop_at_step=null`. A layer that changes a `kind` drops the keys that earlier
layers gave to the previous kind. Unknown keys and wrong values end with one line and exit code 2.

`base:` takes a recipe's name, or the path of a YAML file relative to the file that states it. A recipe's name is its
file's name unless it states `name:`; a name is not inherited. What no name may hold becomes `-` there; a name that is
cut to 200 characters, or held letters other than English ones, ends with a check sum, so that two files' runs stay
apart.
"""


def configuration_page() -> str:
    """Return `docs/configuration.md`."""
    blocks = [HEAD]
    top = [key for key in iterate_keys() if "." not in key.path]
    blocks.append("## Top level\n\n" + _table(top))
    for name, field in Experiment.model_fields.items():
        blocks.extend(_section_blocks(name, field, level=2))
    return "\n".join(blocks)


def _section_blocks(path: str, field: FieldInfo, level: int) -> Iterator[str]:
    """Yield the headed tables of the field's section: one for a plain section, one for each kind of a choice."""
    variants = sections_of(field.annotation)
    for variant in variants:
        kind = _kind_of(variant)
        title = f"`{path}`" + (f", kind `{kind}`" if kind else "")
        is_default = kind is not None and field.get_default(call_default_factory=True).kind == kind
        keys = [key for key in iterate_keys(variant, path + ".") if key.path.count(".") == path.count(".") + 1]
        doc = re.sub(r"\s+", " ", (variant.__doc__ or "").strip())
        yield f"{'#' * level} {title}{' (default)' if is_default else ''}\n\n{doc}\n\n{_table(keys)}"
        for name, inner in variant.model_fields.items():
            yield from _section_blocks(f"{path}.{name}", inner, level + 1)


def _table(keys: list[Key]) -> str:
    rows = ["| Key | Takes | Default | Meaning |", "|---|---|---|---|"]
    rows += [f"| `{key.path}` | {key.allowed} | `{key.default}` | {key.text} |" for key in keys]
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(configuration_page(), end="")
