"""What each signal's value means: which figure it is read from, what speaks for trouble, and what usually helps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pretrain.monitors import cures
from pretrain.monitors.cures import Cure
from pretrain.monitors.verdict_history import History

Groups = Mapping[str, Sequence[Any]]
"""Group -> a value a layer (None or NaN where there is none), or a list of them, one a head."""


class Value(NamedTuple):
    """A figure somewhere in the model."""

    value: float
    group: str
    layer: int
    head: int | None = None


Reading = Callable[[str, Groups, History], Iterator[Value]]
"""(figure, its groups, samples before) -> the values to be judged."""


def as_it_is(figure: str, groups: Groups, history: History) -> Iterator[Value]:
    """Every value, heads one by one."""
    for group, layers in groups.items():
        for layer, found in enumerate(layers):
            if isinstance(found, list):
                yield from (Value(number(value), group, layer, head) for head, value in enumerate(found))
            else:
                yield Value(number(found), group, layer)


def mean_over_heads(figure: str, groups: Groups, history: History) -> Iterator[Value]:
    """One value a layer: a single head may well go its own way."""
    for group, layers in groups.items():
        for layer, found in enumerate(layers):
            heads = [number(value) for value in found] if isinstance(found, list) else [number(found)]
            yield Value(sum(heads) / len(heads), group, layer)


LEAST_SHARE = 0.1
"""Of the whole gradient's norm, from which on a part of it can carry the model away."""


def against_median(figure: str, groups: Groups, history: History) -> Iterator[Value]:
    """Each layer's value divided by the median of its own last samples.

    A part that is little of the whole all the same has not jumped: an encoder that comes to life gets a hundred times
    the gradient that it had, and hardly moves the model.
    """
    least = LEAST_SHARE * whole_norm(groups)
    for value in as_it_is(figure, groups, history):
        if middle := history.median(value.group, value.layer):
            jump = value.value / middle
            yield value._replace(value=min(jump, 1.0) if value.value < least else jump)


def whole_norm(groups: Groups) -> float:
    """Norm of the whole, of the norms of its parts; those of layers are in their wholes."""
    wholes = (rows for group, rows in groups.items() if "." not in group or len(rows) == 1)
    return math.hypot(*(size for rows in wholes for size in map(number, rows) if math.isfinite(size)))


def against_layers(figure: str, groups: Groups, history: History) -> Iterator[Value]:
    """Each layer's value divided by the median over the layers of its group."""
    for group, layers in groups.items():
        known = [number(value) for value in layers if math.isfinite(number(value))]
        if known and (middle := statistics.median(known)):
            yield from (Value(number(value) / middle, group, layer) for layer, value in enumerate(layers))


def without_gains(figure: str, groups: Groups, history: History) -> Iterator[Value]:
    """All but the learned scalars: some designs begin with 0, of which any step is a large share."""
    yield from as_it_is(
        figure, {group: rows for group, rows in groups.items() if not group.endswith(".gains")}, history
    )


def zeros_in_a_row(figure: str, groups: Groups, history: History) -> Iterator[Value]:
    """In how many samples in a row, this one included, the value was exactly 0."""
    for value in as_it_is(figure, groups, history):
        yield value._replace(value=history.zeros(value.group, value.layer) + 1.0 if value.value == 0 else 0.0)


def early_share(figure: str, groups: Groups, history: History) -> Iterator[Value]:
    """Share of the largest update that was made in the first steps, where the model has hardly moved since; else 0."""
    for value in as_it_is(figure, groups, history):
        if math.isfinite(value.value):
            yield value._replace(value=history.early_share(value.value))


def number(value: Any) -> float:
    return math.nan if value is None else float(value)


@dataclass(frozen=True)
class Rule:
    """One signal.

    `name` is its key in the section `verdicts`; the pair there says which way is worse.
    """

    name: str
    figure: str
    meaning: str
    """Follows "FIGURE is VALUE in PLACE"."""
    cure: Cure
    reading: Reading = as_it_is
    supported_by: str = ""
    """A signal whose value in the same place must be beyond its watch for an alarm."""
    repeats: str = ""
    """A signal that says the same: while that one is as bad, this one is not told as well."""


RULES: tuple[Rule, ...] = (
    Rule(
        "attention_logit_max",
        "attention_logit_max",
        "softmax nears one-hot, where its gradient is gone, and training may diverge",
        cures.ATTENTION,
    ),
    Rule(
        "attention_logits_above_100",
        "attention_logits_above_100",
        "so many logits lie beyond 100, where softmax is one-hot",
        cures.ATTENTION,
    ),
    Rule(
        "attention_entropy_mean",
        "attention_entropy_mean",
        "the heads look at hardly more than one key each",
        cures.ATTENTION,
        mean_over_heads,
        supported_by="attention_logit_max",
    ),
    Rule(
        "norm_input_growth",
        "norm_input_growth",
        "the norm's input has grown so many times since step 1, and its gradient has shrunk as much",
        cures.DEPTH,
    ),
    Rule(
        "norm_input_gradient",
        "norm_input_gradient",
        "the gradient through this norm is so small a share of the median layer's: it vanishes on its way down",
        cures.DEPTH,
        against_layers,
    ),
    Rule(
        "gradient_norm_jump",
        "gradient_norm",
        "the gradient is so many times its median, and a collapse may follow within a few steps",
        cures.GRADIENT,
        against_median,
    ),
    Rule(
        "gradient_norm_zero",
        "gradient_norm",
        "no gradient has reached it for so many samples: it does not learn",
        cures.NO_GRADIENT,
        zeros_in_a_row,
    ),
    Rule(
        "update_ratio",
        "update_ratio",
        "a step changes the weights by so large a share of themselves",
        cures.STEP,
        without_gains,
    ),
    Rule(
        "adam_rms",
        "adam_rms",
        "the gradient has grown faster than Adam's second moment, so steps are too long and the loss may spike",
        cures.SECOND_MOMENT,
    ),
    Rule(
        "qk_norm_gain_max",
        "qk_norm_gain_max",
        "the gains of the QK-norm let the attention logits grow",
        cures.GAINS,
    ),
    Rule(
        "source_use",
        "source_use",
        "the decoder predicts as well from another sample's source: it ignores its encoder, and the model is a "
        "language model over its targets",
        cures.SOURCE,
    ),
    Rule(
        "token_cosine",
        "token_cosine",
        "the tokens of a sample have become alike, and the layers above have little to work with",
        cures.SMOOTHING,
    ),
    Rule(
        "high_frequency_ratio",
        "high_frequency_ratio",
        "little of the output differs between the tokens of a sample",
        cures.SMOOTHING,
        repeats="token_cosine",
    ),
    Rule(
        "effective_rank",
        "effective_rank",
        "the outputs lie in so few directions",
        cures.SMOOTHING,
    ),
    Rule(
        "model_update_stuck",
        "model_update_step",
        "the model jumped by so large a share of its whole update in its first steps, and has stood still since",
        cures.DEPTH,
        early_share,
    ),
    Rule(
        "spike_score",
        "spike_score",
        "the loss lies so many deviations above its last values",
        cures.SPIKE,
    ),
    Rule(
        "skipped_steps",
        "skipped_steps",
        "so many batches of the last 100 steps were thrown away",
        cures.SKIPPED,
    ),
    Rule(
        "nonfinite_steps",
        "nonfinite_steps",
        "the loss or gradient of so many batches of the last 100 steps was not finite",
        cures.NOT_FINITE,
    ),
)

NEVER_MISSING = (
    "gradient_norm",
    "weight_norm",
    "update_norm",
    "adam_rms",
    "norm_input_rms",
    "norm_input_gradient",
)
"""Figures in which NaN means a computation that went wrong; in others also that there is nothing to measure."""
