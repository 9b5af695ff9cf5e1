"""What a host is: a native Hugging Face class, which of our models it can hold exactly, and its name map."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig

from pretrain.blocks.masks import document_positions, segment_mask
from pretrain.config.schema import ModelSection
from pretrain.errors import UserError
from pretrain.hf.tokenizer import Marks
from pretrain.hf.trained import Architecture
from pretrain.hf.transforms import Entry
from pretrain.objectives.tokens import SpecialTokens

Batch = Mapping[str, Tensor]


class Host(ABC):
    """A native class. A new one is a subclass in a file of its own, decorated with `register`.

    How it is fed, as it stands here, is that of a model of one stack.
    """

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
    objective: ClassVar[str]
    """What a folder of other origin was trained for, as far as one can know."""
    marks: ClassVar[Marks]
    """What the model reads around a text."""
    padding_side: ClassVar[str] = "right"
    """Where the exported tokenizer pads."""
    segments: ClassVar[bool] = True
    """Whether its forward pass can be told documents and prefixes apart."""

    @abstractmethod
    def objections(self, architecture: Architecture) -> Iterator[str]:
        """Why this model of the right family and block kind would not be held exactly; nothing if it would."""

    @abstractmethod
    def config(self, architecture: Architecture, tokens: SpecialTokens) -> PretrainedConfig:
        """The class's configuration."""

    @abstractmethod
    def generation_config(self, architecture: Architecture, tokens: SpecialTokens) -> GenerationConfig | None:
        """Defaults of generate(); None where the class cannot generate."""

    @abstractmethod
    def entries(self, architecture: Architecture) -> Iterator[Entry]:
        """The name map: every tensor of the host once, every parameter of ours once (duplicates aside)."""

    @abstractmethod
    def module_of(self, layer: str) -> str | None:
        """The host's module whose output equals that of our layer, by names; None where there is none."""

    @abstractmethod
    def architecture_of(self, config: PretrainedConfig, known: Mapping[str, Any]) -> Architecture:
        """The inverse of `config`, for import.

        Args:
            config: of the folder.
            known: keys of the model section that the class does not tell, its `block` among them, where they are known.

        Raises:
            UserError: the folder's model is not one that our families hold exactly.
        """

    def absorb(self, model: Any) -> None:  # noqa: B027  (most hosts have nothing of the kind)
        """On import: move what our model has no tensor for into tensors that it has one for, in place."""

    def inputs(self, batch: Batch, segmented: bool = False) -> dict[str, Tensor]:
        """Arguments of the class's forward pass for a batch of ours.

        Args:
            batch: see `Objective.sample`.
            segmented: the batch's mask tells documents or prefixes apart; else it is taken to tell padding alone.
        """
        mask = batch["attention_mask"]
        if not segmented:
            return {"input_ids": batch["input_ids"], "attention_mask": (mask != 0).long()}
        return {
            "input_ids": batch["input_ids"],
            "attention_mask": segment_mask(mask, mask, causal=self.family == "decoder"),
            "position_ids": document_positions(mask),
        }

    def answers(self, batch: Batch) -> Tensor:
        """bool [B, T]: positions whose logits mean something; at padding the class may compute what it likes."""
        return batch["attention_mask"] != 0


HOSTS: list[Host] = []


def register(host: type[Host]) -> type[Host]:
    """Class decorator: offer the host to `host_for`; of several that hold a model the first is taken."""
    HOSTS.append(host())
    return host


def host_for(architecture: Architecture) -> Host:
    """The native class that holds the model exactly.

    Raises:
        UserError: there is none; the line says why.
    """
    reasons = []
    for host in HOSTS:
        if host.family != architecture.model.family:
            continue
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
    kind = model.block.kind  # type: ignore[attr-defined]
    if kind not in host.blocks:
        return f"model.block.kind {kind} is not among what it holds, {', '.join(sorted(host.blocks))}"
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
