"""Ready-made benchmarks: every model family at the sizes and precisions whose speed is promised."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pretrain.errors import UserError


@dataclass(frozen=True)
class Model:
    """A family with the block and the options that a native Hugging Face class holds."""

    family: str
    block: str
    objective: str
    stacks: tuple[str, ...]
    options: tuple[tuple[str, Any], ...] = ()
    """Keys of the model section."""
    deep: bool = True
    """Whether it is measured at 48 layers too: so many of plain Post-LN amplify rounding until nothing compares."""


MODELS = (
    Model("decoder", "pre_ln", "causal_lm", ("decoder",), (("activation", "gelu_tanh"), ("embedding_norm", False))),
    Model("decoder", "post_ln", "causal_lm", ("decoder",), (("embedding_norm", False),), deep=False),
    Model("decoder", "deepnorm", "causal_lm", ("decoder",), (("embedding_norm", False),)),
    Model("encoder", "post_ln", "masked_lm", ("encoder",), (("activation", "gelu"),), deep=False),
    Model("encoder", "deepnorm", "masked_lm", ("encoder",), (("activation", "gelu"),)),
    Model("encoder_decoder", "post_ln", "span_denoising", ("encoder", "decoder"), deep=False),
    Model("encoder_decoder", "deepnorm", "span_denoising", ("encoder", "decoder")),
)
SIZES = ((12, 256), (48, 128))
"""Layers of each stack, width; heads of 64, an FFN of four widths."""
PRECISIONS = ("fp32", "bf16")
TINY = {
    "model": {"hidden_size": 32, "num_heads": 2, "ffn_size": 64},
    "data": {"vocab_size": 512, "sequence_length": 32},
    "batch": {"global_batch_size": 2, "micro_batch_size": 2},
}


@dataclass(frozen=True)
class Case:
    """One benchmark of a suite."""

    model: Model
    layers: int
    width: int
    precision: str

    @property
    def name(self) -> str:
        return f"{self.model.family}-{self.model.block}-{self.layers}x{self.width}-{self.precision}"

    @property
    def bound(self) -> float:
        """Largest ratio to the Hugging Face Trainer's time that is promised.

        12 x 256 in fp32 is bound by the matrix products, which are the same on both sides.
        """
        return 1.05 if self.width >= 256 and self.precision == "fp32" else 0.95

    def recipe(self) -> dict[str, Any]:
        """The recipe's document: batch 8 x 128."""
        depth = {f"{stack}_layers": self.layers for stack in self.model.stacks}
        return {
            "model": {
                "family": self.model.family,
                **depth,
                "hidden_size": self.width,
                "num_heads": self.width // 64,
                "ffn_size": 4 * self.width,
                "block": {"kind": self.model.block},
                **dict(self.model.options),
            },
            "objective": {"kind": self.model.objective},
            "data": {"vocab_size": 4096, "sequence_length": 128},
            "batch": {"global_batch_size": 8, "micro_batch_size": 8},
            "optimizer": {"lr": 1e-6},  # larger steps turn rounding into other losses
            "schedule": {"kind": "constant"},
            "train": {"precision": self.precision},
            "tiny": {**TINY, "model": {**TINY["model"], **dict.fromkeys(depth, 2)}},
        }

    def write(self, folder: Path) -> Path:
        """The recipe as a file."""
        path = folder / f"{self.name}.yaml"
        path.write_text(yaml.safe_dump(self.recipe()))
        return path


SUITES = {
    "families": tuple(
        Case(model, layers, width, precision)
        for model, (layers, width), precision in itertools.product(MODELS, SIZES, PRECISIONS)
        if model.deep or layers < 48
    )
}


def cases(suite: str, only: str | None) -> Sequence[Case]:
    """The benchmarks of a suite, in order.

    Args:
        suite: a key of SUITES.
        only: comma-separated patterns; a case whose name matches one is kept. None keeps all.

    Raises:
        UserError: nothing is kept.
    """
    if only is None:
        return SUITES[suite]
    patterns = only.split(",")
    kept = [case for case in SUITES[suite] if any(fnmatch.fnmatchcase(case.name, pattern) for pattern in patterns)]
    if not kept:
        raise UserError(f"--only {only}: matches no case; one is {SUITES[suite][0].name}, and * stands for anything")
    return kept
