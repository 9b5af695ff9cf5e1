"""Span denoising of T5 (Raffel et al. 2020, "Exploring the Limits of Transfer Learning", section 3.1.4).

Random spans of the text are each replaced by one sentinel in the source; the target lists the sentinels with what
they replaced. Source: `text0 s0 text1 s1 ... eos`. Target: `s0 span0 s1 span1 ... eos`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PositiveInt

from pretrain.errors import ConfigError
from pretrain.objectives.arrays import padded
from pretrain.objectives.cross_entropy import IGNORE_INDEX
from pretrain.objectives.registry import OBJECTIVES
from pretrain.objectives.tokens import SpecialTokens
from pretrain.registry import Section


class SpanDenoisingConfig(Section):
    """Span denoising (T5): restore removed spans of the text."""

    kind: Literal["span_denoising"] = "span_denoising"
    """Restore spans that sentinels replaced in the source."""
    noise_density: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the text's tokens that is removed."""
    mean_span_length: Annotated[float, Field(ge=1)] = 3.0
    """Mean length of a removed span in tokens."""
    sentinels: PositiveInt = 100
    """Sentinel pieces of the tokenizer; at least the number of spans in one sample."""


@dataclass(frozen=True)
class SpanPlan:
    """How many tokens and spans are removed from a text of `length` tokens; the same for every sample."""

    length: int
    noise_tokens: int
    spans: int

    @classmethod
    def of(cls, length: int, noise_density: float, mean_span_length: float) -> SpanPlan:
        """T5's counts. At least one token goes and one stays; spans never outnumber either kind of token."""
        if length < 2:
            return cls(length, 0, 0)
        noise = min(max(round(length * noise_density), 1), length - 1)
        spans = min(max(round(noise / mean_span_length), 1), noise, length - noise)
        return cls(length, noise, spans)

    @property
    def source_length(self) -> int:
        """Kept tokens, one sentinel a span, eos."""
        return self.length - self.noise_tokens + self.spans + 1

    @property
    def target_length(self) -> int:
        """Removed tokens, one sentinel a span, eos."""
        return self.noise_tokens + self.spans + 1


@OBJECTIVES.register(SpanDenoisingConfig)
class SpanDenoising:
    """Turns a piece of text into a source with sentinels and the target that fills them.

    Args:
        config: rates; see `SpanDenoisingConfig`.
        tokens: special ids of the tokenizer.
        sequence_length: S, tokens of the encoder's input, eos included.
        document_mask: must be False; a removed span may reach over the end of a document.

    Attributes:
        raw_length: tokens of text that one sample takes, so that its source is S long.
        target_length: T, tokens of the decoder's input and of the labels, eos included.

    Raises:
        ConfigError: the length is too short to remove a span from, or the sentinels are too few for it.
    """

    families = frozenset({"encoder_decoder"})
    maskable = False
    segmented = False

    def __init__(
        self, config: SpanDenoisingConfig, tokens: SpecialTokens, sequence_length: int, document_mask: bool = False
    ):
        self.config = config
        self.tokens = tokens
        self.source_length = sequence_length
        plan = self._longest_plan()
        self.raw_length = plan.length
        self.target_length = plan.target_length
        self._sentinels = np.asarray(tokens.sentinels[: plan.spans], dtype=np.int64)
        if plan.spans > config.sentinels:
            raise ConfigError(
                f"objective.sentinels: {config.sentinels} are too few for data.sequence_length "
                f"{sequence_length}, which has {plan.spans} spans; set objective.sentinels={plan.spans} or more, or a "
                "smaller data.sequence_length"
            )
        if plan.spans > len(tokens.sentinels):
            raise ConfigError(
                f"data.tokenizer: it has {len(tokens.sentinels)} sentinels, but data.sequence_length {sequence_length} "
                f"has {plan.spans} spans; train one with more, or set a shorter data.sequence_length"
            )

    def _plan(self, length: int) -> SpanPlan:
        return SpanPlan.of(length, self.config.noise_density, self.config.mean_span_length)

    def _longest_plan(self) -> SpanPlan:
        # One more token of text lengthens the source by at most one, so the search ends exactly at source_length or,
        # for rates that jump over it, one short (the source is padded by that one).
        length = 1
        while self._plan(length + 1).source_length <= self.source_length:
            length += 1
        if length < 2:
            raise ConfigError(
                f"data.sequence_length: {self.source_length} is too short for text, a sentinel and the end mark; "
                "set 3 or more"
            )
        return self._plan(length)

    def sample(self, text: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Noise one piece of text.

        Args:
            text: [n] token ids, 0 <= n <= raw_length; a shorter piece is padded after its eos.
            rng: the only source of randomness.

        Returns:
            int64 arrays `input_ids` [S], `attention_mask` [S] (1 real, 0 pad), `decoder_input_ids` [T] (bos, then the
            labels shifted), `labels` [T] (pad -100).
        """
        text = np.asarray(text, dtype=np.int64)
        plan = self._plan(len(text))
        kept, removed = self._split(text, plan, rng)
        eos = np.array([self.tokens.eos], dtype=np.int64)
        source = np.concatenate([*kept, eos])
        target = np.concatenate([*removed, eos])
        labels = padded(target, self.target_length, IGNORE_INDEX)
        shifted = np.concatenate([[self.tokens.bos], target[:-1]])
        return {
            "input_ids": padded(source, self.source_length, self.tokens.pad),
            "attention_mask": padded(np.ones_like(source), self.source_length, 0),
            "decoder_input_ids": padded(shifted, self.target_length, self.tokens.pad),
            "labels": labels,
        }

    def _split(
        self, text: np.ndarray, plan: SpanPlan, rng: np.random.Generator
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The pieces of the source (text, sentinel, text, sentinel ...) and of the target (sentinel, span ...)."""
        if plan.spans == 0:
            return [text], []
        removed_lengths = random_segmentation(plan.noise_tokens, plan.spans, rng)
        kept_lengths = random_segmentation(plan.length - plan.noise_tokens, plan.spans, rng)
        lengths = np.stack([kept_lengths, removed_lengths], axis=1).reshape(-1)
        pieces = np.split(text, np.cumsum(lengths)[:-1])
        kept: list[np.ndarray] = []
        removed: list[np.ndarray] = []
        for index in range(plan.spans):
            sentinel = self._sentinels[index : index + 1]
            kept += [pieces[2 * index], sentinel]
            removed += [sentinel, pieces[2 * index + 1]]
        return kept, removed


def random_segmentation(items: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths [segments] of a uniformly random cut of `items` into non-empty segments; they sum to `items`."""
    cuts = np.sort(rng.choice(items - 1, segments - 1, replace=False)) + 1 if segments > 1 else np.empty(0, np.int64)
    return np.diff(np.concatenate([[0], cuts, [items]])).astype(np.int64)
