"""From a recipe, its base recipes, its tiny section and dotted overrides to one checked Experiment."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from pretrain.config.messages import did_you_mean, validation_message
from pretrain.config.paths import as_text, check_path, name_of
from pretrain.config.schema import Experiment
from pretrain.errors import ConfigError
from pretrain.state.bounded import BadFile, read_bounded
from pretrain.state.bounded_yaml import YAML_BYTES, BoundedLoader, load_yaml

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
SUFFIXES = (".yaml", ".yml")
# Keys of a recipe file that are not keys of an experiment.
BASE, TINY = "base", "tiny"

Layer = dict[str, Any]


class _RecipeLoader(BoundedLoader):
    """Safe YAML that reads 2e-3 as a number (YAML 1.2), keeps dates as text, and refuses a key that stands twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML's own class attribute, replaced and not changed)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_experiment(recipe: str, overrides: Sequence[str] = (), tiny: bool = False) -> Experiment:
    """Return the experiment that a recipe and the command line describe.

    Args:
        recipe: name of a shipped recipe, or the path of a YAML file.
        overrides: `key.path=value` each, values as YAML; the last layer.
        tiny: merge the recipe's own `tiny:` section before the overrides.

    Raises:
        ConfigError: the recipe cannot be found or read, or a key or value is wrong.
    """
    path = find_recipe(recipe)
    layers = read_layers(path)
    smalls = [layer.pop(TINY) for layer in layers if TINY in layer]
    if tiny and not smalls:
        raise ConfigError(f"{path}: the recipe has no `{TINY}:` section; add one, or leave out --tiny")
    # A tiny run is another experiment: it must not go on in the folder of the full one.
    data: Layer = {"name": name_of(path.stem, "-tiny" if tiny else "")}
    for layer in [default_kinds(), *layers, *(smalls if tiny else []), parse_overrides(overrides)]:
        data = merge(data, layer)
    experiment = build_experiment(data)
    check_paths(experiment)
    return experiment


def check_paths(experiment: Experiment) -> None:
    """Raises ConfigError: the system cannot take one of the experiment's paths, wherever it leads."""
    paths = {"run.dir": experiment.run_dir, "run.cache": str(Path(experiment.run.cache).expanduser())}
    for key in ("train", "validation", "tokenizer"):
        paths[f"data.{key}"] = getattr(experiment.data, key) or ""
    for key, path in paths.items():
        check_path(key, path)


def to_yaml(experiment: Experiment) -> str:
    """Return the experiment as a recipe file that states every key; loading it gives an equal experiment."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(recipe: str, folder: Path | None = None) -> Path:
    """Return the file of a recipe's name or path; a relative path starts at `folder` (default: here).

    Raises:
        ConfigError: there is no such recipe or file.
    """
    if recipe.endswith(SUFFIXES) or "/" in recipe:
        path = (folder or Path()) / Path(recipe).expanduser()
        check_path("recipe file", str(path))
        if not path.is_file():
            what = "is a folder, not a recipe file" if path.is_dir() else "does not exist"
            raise ConfigError(f"recipe file {path} {what}; give a YAML file or one of: {', '.join(recipe_names())}")
        return path
    path = RECIPES / f"{recipe}.yaml"
    if recipe not in recipe_names():
        raise ConfigError(f"unknown recipe {recipe!r}; {did_you_mean(recipe, recipe_names())}")
    return path


def read_layers(path: Path) -> list[Layer]:
    """Return the documents of a recipe and of all its bases, the first base first, without `base` keys.

    Raises:
        ConfigError: a file is broken, or a recipe builds on itself.
    """
    layers: list[Layer] = []
    chain: list[Path] = []
    current: Path | None = path
    while current is not None:
        if current.resolve() in [seen.resolve() for seen in chain]:
            names = " -> ".join(str(seen.name) for seen in [*chain, current])
            raise ConfigError(f"{current}: recipes build on each other in a circle ({names}); remove one `{BASE}:`")
        chain.append(current)
        document = read_yaml(current)
        base = document.pop(BASE, None)
        if base is not None and not isinstance(base, str):
            raise ConfigError(f"{current}: {BASE} = {base!r} is not valid; give one recipe's name or file")
        if TINY in document and not isinstance(document[TINY], dict):
            raise ConfigError(f"{current}: {TINY} = {document[TINY]!r} is not a section; put keys below it")
        if len(chain) > 1:
            document.pop("name", None)  # a name belongs to one recipe: two in the same run folder would collide
        layers.insert(0, document)
        current = find_recipe(base, current.parent) if base else None
    return layers


def read_yaml(path: Path) -> Layer:
    """Return the mapping that a YAML file holds.

    Raises:
        ConfigError: naming file and line.
    """
    try:
        document = load_yaml(read_bounded(path, YAML_BYTES, follow=True), _RecipeLoader)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason}); save the file as UTF-8") from None
    except BadFile as error:
        raise ConfigError(f"{path}: {error}; check the file and its permissions") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: broken YAML: {_one_line(getattr(error, 'problem', None) or error)}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"{path}:1: a recipe is a mapping of keys to values, not {type(document).__name__}")
    _check_values(document, str(path))
    return document


def parse_overrides(overrides: Iterable[str]) -> Layer:
    """Return the layer that `key.path=value` arguments describe; a later one wins.

    Raises:
        ConfigError: an argument is not of that form or its value is not YAML.
    """
    arguments = []
    for override in map(as_text, overrides):
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"override {override!r} has no '='; write key.path=value")
        if not all(re.fullmatch(r"\w+", part) for part in key.split(".")):
            raise ConfigError(
                f"override {override!r}: {key!r} is not a key; write key.path=value, such as train.seed=1"
            )
        # A pattern such as *.py is text; YAML alone would take it for an alias, which has no meaning here.
        arguments.append(f"{key}={json.dumps(value)}" if value.startswith("*") else override)
        try:
            layer = OmegaConf.to_container(OmegaConf.from_dotlist(arguments[-1:]), resolve=False)
        except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
            problem = _one_line(getattr(error, "problem", None) or error)
            raise ConfigError(f"override {override!r}: the value is not YAML ({problem}); quote or mend it") from None
        _check_values(layer, "command line")
    return OmegaConf.to_container(OmegaConf.from_dotlist(arguments), resolve=False)  # type: ignore[return-value]


def merge(below: Layer, above: Layer) -> Layer:
    """Return `below` with the keys of `above` on top.

    Sections are merged key by key, anything else (lists too) is replaced. Where `above` states another `kind` than
    `below`, only its own keys are kept: those of the previous kind mean nothing to the new one.
    """
    merged = OmegaConf.merge(OmegaConf.create(_without_other_kinds(below, above)), OmegaConf.create(above))
    return OmegaConf.to_container(merged, resolve=False)  # type: ignore[return-value]


def default_kinds() -> Layer:
    """Return the layer below all others: the default `kind` of each choice, so that a change of it is seen."""

    def pick(node: Layer) -> Layer:
        below = {key: pick(value) for key, value in node.items() if isinstance(value, dict)}
        kinds = {key: value for key, value in below.items() if value}
        return {"kind": node["kind"], **kinds} if "kind" in node else kinds

    return pick(Experiment().model_dump())


def build_experiment(data: Layer) -> Experiment:
    """Return the typed experiment.

    Raises:
        ConfigError: one line about the first unknown key or wrong value.
    """
    try:
        # Strict JSON mode: no text where a number belongs, but lists for tuples and 1 for 1.0.
        return Experiment.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise ConfigError(validation_message(error, data)) from None


def _without_other_kinds(below: Layer, above: Layer) -> Layer:
    kept = {}
    for key, value in below.items():
        over = above.get(key)
        if not (isinstance(value, dict) and isinstance(over, dict)):
            kept[key] = value
        elif "kind" in over and over["kind"] != value.get("kind", over["kind"]):
            continue
        else:
            kept[key] = _without_other_kinds(value, over)
    return kept


def _check_values(node: Any, where: str, path: str = "") -> None:
    """Raise ConfigError for values that no key takes.

    `${` would interpolate, but a recipe means the same on every machine; infinities have no place in JSON.
    """
    if isinstance(node, dict):
        for key, value in node.items():
            _check_values(key, where)
            _check_values(value, where, f"{path}.{key}" if path else key)
    elif isinstance(node, list):
        for item in node:
            _check_values(item, where, path)
    elif isinstance(node, str) and re.search("[\ud800-\udfff]", node):
        raise ConfigError(f"{where}: {path or 'a key'} = {node!r} holds half a character; write the whole one in UTF-8")
    elif isinstance(node, str) and "${" in node:
        raise ConfigError(
            f"{where}: {path or 'a key'} = {node!r}, but values are not interpolated; write out what is meant"
        )
    elif isinstance(node, float) and not math.isfinite(node):
        raise ConfigError(f"{where}: {path} = {node} is not a finite number; write a finite one")
    elif isinstance(node, int) and abs(node) >= 2**63:
        raise ConfigError(f"{where}: {path} is a number of more than 63 bits; write a smaller one")
    elif not isinstance(node, (str, int, float, type(None))):
        raise ConfigError(f"{where}: {path} is a {type(node).__name__}; write text, numbers, lists or sections")


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
