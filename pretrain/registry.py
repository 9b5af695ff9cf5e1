"""Registries of variants: a variant is a class and its typed config, chosen by the config's `kind`."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")


class Section(BaseModel):
    """Base of every typed section of an experiment: immutable, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


class Registry(Generic[T]):
    """Maps the `kind` of a config class to the implementation that takes it.

    Args:
        noun: what the entries are, for error messages ("block", "objective", ...).
    """

    def __init__(self, noun: str):
        self.noun = noun
        self._entries: dict[str, tuple[type[Section], T]] = {}

    def register(self, config: type[Section]) -> Callable[[T], T]:
        """Decorator: register the class below under its config's `kind`."""
        kind = config.model_fields["kind"].default

        def add(implementation: T) -> T:
            if kind in self._entries:
                raise ValueError(f"{self.noun} kind {kind!r} is registered twice")
            self._entries[kind] = (config, implementation)
            return implementation

        return add

    def __getitem__(self, kind: str) -> T:
        return self._entries[kind][1]

    def of(self, config: Any) -> T:
        """The implementation that belongs to `config`."""
        return self._entries[config.kind][1]

    def build(self, config: Any, *args: Any, **kwargs: Any) -> Any:
        """Build the implementation that belongs to `config`."""
        return self.of(config)(config, *args, **kwargs)  # type: ignore[operator]

    def config(self, kind: str) -> type[Section]:
        """The typed config of a kind."""
        return self._entries[kind][0]

    def kinds(self) -> list[str]:
        return sorted(self._entries)

    def config_types(self) -> tuple[type[Section], ...]:
        return tuple(config for config, _ in self._entries.values())

    def config_union(self) -> Any:
        """A pydantic type that accepts the config of any registered kind, told apart by `kind`."""
        union = functools.reduce(operator.or_, self.config_types())
        return Annotated[union, Field(discriminator="kind")] if len(self._entries) > 1 else union
