"""What a host is: a native Hugging Face class, which of our models it can hold exactly, and its name map."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from transformers import GenerationConfig, PretrainedConfig

from pretrain.config.schema import ModelSection
from pretrain.errors import UserError
from pretrain.hf.trained import Architecture
from pretrain.hf.transforms import Entry
from pretrain.objectives.tokens import SpecialTokens


class Host(ABC):
    """A native class. A new one is a subclass in a file of its own, decorated with `register`."""

    model_type: ClassVar[str]
    """transformers' name of the architecture."""
    model_class: ClassVar[Any]
    """The transformers class that is built and saved."""
    auto_class: ClassVar[Any]
    """The Auto class that users load it by."""
    pipeline_tag: ClassVar[str]
    """The Hub's name of its task."""
    family: ClassVar[str]
    """model.family that it holds."""
    blocks: ClassVar[frozenset[str]]
    """Values of model.block.kind that it holds."""

    @abstractmethod
    def objections(self, architecture: Architecture) -> Iterator[str]:
        """Why this model of the right family and block kind would not be held exactly; nothing if it would."""

    @abstractmethod
    def config(self, architecture: Architecture, tokens: SpecialTokens) -> PretrainedConfig:
        """The class's configuration."""

    @abstractmethod
    def generation_config(self, architecture: Architecture, tokens: SpecialTokens) -> GenerationConfig:
        """Defaults of generate()."""

    @abstractmethod
    def entries(self, architecture: Architecture) -> Iterator[Entry]:
        """The name map: every tensor of the host once, every parameter of ours once (duplicates aside)."""

    @abstractmethod
    def module_of(self, layer: str) -> str | None:
        """The host's module whose output equals that of our layer, by names; None where there is none."""

    @abstractmethod
    def architecture_of(self, config: PretrainedConfig, block: dict[str, Any]) -> Architecture:
        """The inverse of `config`, for import; the host does not know which block its weights are unfolded to.

        Raises:
            UserError: the folder's model is not one that our families hold exactly.
        """


HOSTS: list[Host] = []


def register(host: type[Host]) -> type[Host]:
    """Class decorator: offer the host to `host_for`."""
    HOSTS.append(host())
    return host


def host_for(architecture: Architecture) -> Host:
    """The native class that holds the model exactly.

    Raises:
        UserError: there is none; the line says why.
    """
    reasons = []
    for host in HOSTS:
        reason = refusal(host, architecture)
        if reason is None:
            return host
        reasons.append(f"{host.model_class.__name__}: {reason}")
    raise UserError("no native Hugging Face class holds this model exactly: " + "; ".join(reasons))


def refusal(host: Host, architecture: Architecture) -> str | None:
    """Why `host` cannot hold the model, or None."""
    model: ModelSection = architecture.model
    if model.family != host.family:
        return f"model.family {model.family} is not {host.family}"
    if model.block.kind not in host.blocks:  # type: ignore[attr-defined]
        kinds = " and ".join(sorted(host.blocks))
        return f"model.block.kind {model.block.kind} is not among what it holds, {kinds}"  # type: ignore[attr-defined]
    return next(host.objections(architecture), None)


def host_of_type(model_type: str) -> Host:
    """The host of a folder's `model_type`.

    Raises:
        UserError: none is known.
    """
    for host in HOSTS:
        if host.model_type == model_type:
            return host
    known = ", ".join(host.model_type for host in HOSTS)
    raise UserError(f"config.json: model_type {model_type!r} cannot be imported; known: {known}")
