"""Safe YAML that cannot grow: what aliases stand for counts as often as it is used, as it will when it is walked."""

from __future__ import annotations

from typing import Any

import yaml

from pretrain.state.bounded import BadFile

YAML_BYTES = 2**20
NODES = 50_000
"""Values of a file, each one counted as often as aliases repeat it. The largest recipe has a few hundred."""
DEPTH = 64


class TooMuch(yaml.MarkedYAMLError):
    """A file that stands for more than any configuration has."""


class BoundedLoader(yaml.SafeLoader):
    """Raises TooMuch at the first value too many, before anything is built from it."""

    def __init__(self, stream: Any):
        super().__init__(stream)
        self._depth = 0
        self._count = 0
        """Values so far."""
        self._sizes: dict[int, int] = {}
        """id of a composed node -> values that it stands for. The document keeps the nodes alive."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark, alias = self.peek_event().start_mark, self.check_event(yaml.events.AliasEvent)
        before, self._depth = self._count, self._depth + 1
        if self._depth > DEPTH:
            raise TooMuch(problem=f"values are nested deeper than {DEPTH}", problem_mark=mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias and id(node) not in self._sizes:
            raise TooMuch(problem="an alias stands inside of what it stands for", problem_mark=mark)
        self._count += self._sizes[id(node)] if alias else 1
        if self._count > NODES:
            raise TooMuch(problem=f"it stands for more than {NODES:,} values", problem_mark=mark)
        if not alias:
            self._sizes[id(node)] = self._count - before
        return node


def load_yaml(content: bytes, loader: type[BoundedLoader] = BoundedLoader) -> Any:
    """The value of a YAML text in UTF-8.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
        yaml.YAMLError: it is not YAML, stands for too much, or has a value that its own tag does not fit.
    """
    text = content.decode("utf-8")
    try:
        return yaml.load(text, Loader=loader)
    except yaml.YAMLError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        # PyYAML's constructors raise them for values such as !!int x, !!bool x or 0x_.
        raise yaml.YAMLError(f"a value does not fit its tag ({type(error).__name__}: {error})") from None


def check_yaml(content: bytes) -> None:
    """Raises BadFile unless it is a mapping in YAML that does not stand for too much."""
    try:
        document = load_yaml(content)
    except UnicodeDecodeError as error:
        raise BadFile(f"damaged (not UTF-8: {error.reason})") from None
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or error
        raise BadFile(f"damaged ({' '.join(str(problem).split())[:200]})") from None
    if not isinstance(document, dict):
        raise BadFile("damaged (it is no mapping)")
