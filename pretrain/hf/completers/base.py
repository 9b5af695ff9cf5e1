"""A completer: an exported model with its tokenizer, and the way in which it completes a prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoTokenizer

from pretrain.errors import UserError
from pretrain.hf.hosts.base import Host
from pretrain.hf.quiet import quiet


@dataclass(frozen=True)
class Options:
    """How to choose tokens.

    Attributes:
        max_new_tokens: length limit of the output; None: as far as the model goes.
        num_beams: beams of the search; 1: greedy.
        temperature: 0 takes the likeliest token; above 0 samples, from `seed`.
    """

    max_new_tokens: int | None = None
    num_beams: int = 1
    temperature: float = 0.0
    seed: int = 0

    def check(self) -> None:
        """Raises UserError for what no model can do."""
        if self.num_beams < 1:
            raise UserError(f"--num-beams {self.num_beams}: give 1 (greedy) or more")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"--temperature {self.temperature}: give 0 (the likeliest token) or more")
        if self.temperature and self.num_beams > 1:
            raise UserError(
                f"--num-beams {self.num_beams} searches and --temperature {self.temperature:g} samples; give one of "
                "them"
            )

    def length(self, least: int, most: int, why: str) -> int:
        """`max_new_tokens`, `most` by default. Raises UserError outside least..most; `why` says what sets `most`."""
        length = most if self.max_new_tokens is None else self.max_new_tokens
        if not least <= length <= most:
            raise UserError(f"--max-new-tokens {length}: give {least} to {most}, {why}")
        return length


@dataclass(frozen=True)
class Completion:
    """`text` is the prompt made whole; `parts` is what the model wrote, in order: one for each blank, or one."""

    text: str
    parts: list[str]


class Completer(ABC):
    """A new way is a subclass in a file of its own, decorated with `register`.

    Args:
        folder: what `export` wrote.
        host: its class.

    Raises:
        UserError: the folder holds no such model.
    """

    objectives: ClassVar[tuple[str, ...]]
    """Values of objective.kind that train for it."""
    purpose: ClassVar[str]
    """What the model does, for its card."""
    prompt: ClassVar[str]
    """An example, for the card; a Python expression."""
    example: ClassVar[str] = """\
inputs = tokenizer({prompt}, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs)[0]))"""
    """Python code for the card, with a tokenizer and a model."""

    def __init__(self, folder: Path, host: Host):
        with quiet():
            try:
                self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
                self.model: Any = host.auto_class.from_pretrained(folder, local_files_only=True).eval()
            except (OSError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise UserError(f"{folder}: no model that transformers can load ({reason})") from error

    def complete(self, prompt: str, options: Options = Options()) -> Completion:
        """Complete a prompt.

        Raises:
            UserError: a wrong option, or a prompt that the model cannot read.
        """
        options.check()
        with quiet(), torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            return self.answer(prompt, options)

    @abstractmethod
    def answer(self, prompt: str, options: Options) -> Completion:
        """`complete`, with checked options and the random source seeded."""

    def ids(self, prompt: str) -> list[int]:
        """The prompt's tokens, without marks around them."""
        return self.tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids

    def check_length(self, ids: list[int], marks: int) -> None:
        """Raises UserError if the prompt and `marks` more tokens are more than the model reads."""
        longest = self.tokenizer.model_max_length - marks
        if len(ids) > longest:
            raise UserError(f"--prompt: {len(ids)} tokens, the model reads at most {longest}; shorten it")

    def generate(self, options: Options, **arguments: Any) -> list[int]:
        """`generate` of the model, by the options, of one sequence."""
        sampling: dict[str, Any] = {"do_sample": False}
        if options.temperature:
            sampling = {"do_sample": True, "temperature": options.temperature, "top_k": 0}
        output: Tensor = self.model.generate(num_beams=options.num_beams, **sampling, **arguments)
        return output[0].tolist()

    def text(self, ids: Iterable[int]) -> str:
        """Text of ids, without special pieces."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)


COMPLETERS: dict[str, type[Completer]] = {}
"""Completers by objective.kind."""


def register(completer: type[Completer]) -> type[Completer]:
    """Class decorator: use it for its objectives."""
    COMPLETERS.update(dict.fromkeys(completer.objectives, completer))
    return completer
