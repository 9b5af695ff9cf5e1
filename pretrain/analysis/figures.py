"""What each depth figure is: title, unit, what to look for, and which end of it is the bad one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

SECTIONS = {
    "update": "Model update",
    "gradients": "Gradients and updates",
    "norms": "Norm inputs",
    "attention": "Attention",
    "smoothing": "Smoothing",
    "scalars": "Scalars",
    "other": "Other figures",
}
"""Key -> title of the report's sections over depth, in their order."""


@dataclass(frozen=True)
class Figure:
    """A figure of layers.jsonl as a reader meets it."""

    title: str
    unit: str
    text: str
    section: str
    worst: Literal["high", "low", "size"] = "high"
    """Which value of several (heads, layers under one pixel) speaks for all: the largest, the smallest, the one
    farthest from zero."""


FIGURES = {
    "model_update": Figure(
        "Model update",
        "L2 of a token's output, RMS over tokens",
        "‖F(x, θ) − F(x, θ₀)‖: how far the model's output on the fixed probe batch has moved from initialisation. A "
        "stable run moves evenly; a jump within the first steps that then goes flat is a run that is stuck.",
        "update",
    ),
    "model_update_step": Figure(
        "Model update since the sample before",
        "L2 of a token's output, RMS over tokens",
        "How far the output on the probe has moved since the sample before.",
        "update",
    ),
    "model_update_bound": Figure(
        "Heuristic bound",
        "L2 of a token's output, RMS over tokens",
        "DeepNet's theorem with the run's own weights in the place of its scalars: a guide, not a proof.",
        "update",
    ),
    "update_ratio": Figure(
        "Update ÷ weight",
        "ratio of L2 norms",
        "The share of itself by which a step changes each layer's weights. About 10⁻³ is usual; layers far above the "
        "others are learning too fast, layers far below stand still.",
        "gradients",
    ),
    "update_norm": Figure(
        "Weight update",
        "L2 norm",
        "How far one step moves each layer's weights. A stable deep run keeps it even over depth; a jump that then "
        "goes flat is a run that is stuck.",
        "gradients",
    ),
    "gradient_norm": Figure(
        "Gradient",
        "L2 norm, before clipping",
        "The gradient that reaches each layer's weights. A steep slope over depth is a gradient that vanishes or "
        "explodes on its way down.",
        "gradients",
    ),
    "weight_norm": Figure(
        "Weights",
        "L2 norm",
        "The size of each layer's weights. Steady growth shrinks the effective learning rate; sudden growth comes with "
        "a spike.",
        "gradients",
    ),
    "adam_rms": Figure(
        "Adam's RMS",
        "√mean(g² ÷ v)",
        "The gradient against Adam's second moment. About 1 is healthy; well above, the moment is out of date and the "
        "step is larger than it should be, which often comes just before a spike (StableAdamW).",
        "gradients",
    ),
    "norm_input_rms": Figure(
        "LayerNorm input",
        "RMS",
        "What each LayerNorm receives. Its gradient falls as 1 / RMS, so growth over depth or time is a vanishing "
        "gradient below.",
        "norms",
    ),
    "norm_input_growth": Figure(
        "Growth of the LayerNorm input",
        "÷ step 1",
        "The same against step 1. With DeepNorm it stays near 1; growth in the top layers is how Post-LN gets stuck.",
        "norms",
    ),
    "norm_input_gradient": Figure(
        "Gradient through the LayerNorm",
        "RMS",
        "The gradient that leaves each LayerNorm through its input: what is left of it for the layers below.",
        "norms",
    ),
    "attention_logit_max": Figure(
        "Largest attention logit",
        "max |logit|",
        "The largest score before the softmax. Above about 100 the softmax is one-hot and its gradient gone; QK-norm "
        "bounds it (ViT-22B).",
        "attention",
    ),
    "attention_logits_above_100": Figure(
        "Logits above 100",
        "share",
        "The share of scores beyond 100. Anything above zero that grows is attention about to collapse.",
        "attention",
    ),
    "attention_entropy_mean": Figure(
        "Attention entropy, mean",
        "÷ log(visible keys)",
        "1 looks everywhere alike, 0 at a single key. Near 0 in many heads at once: attention has collapsed.",
        "attention",
        "low",
    ),
    "attention_entropy_min": Figure(
        "Attention entropy, minimum",
        "÷ log(visible keys)",
        "The sharpest query of each head. A single sharp head is normal; a whole layer near 0 is a collapse.",
        "attention",
        "low",
    ),
    "qk_norm_gain_max": Figure(
        "QK-norm gain",
        "max |gain|",
        "The largest gain of the norms on queries and keys: with QK-norm the logits can grow through it alone.",
        "attention",
    ),
    "token_cosine": Figure(
        "Likeness of tokens",
        "mean pairwise cosine",
        "How alike a layer's outputs are for different tokens. Towards 1 the tokens say the same: over-smoothing, and "
        "the layers above have little to work with.",
        "smoothing",
    ),
    "high_frequency_ratio": Figure(
        "What differs between tokens",
        "share of the norm",
        "The part of a layer's output that is left without the tokens' mean. Towards 0: over-smoothing.",
        "smoothing",
        "low",
    ),
    "effective_rank": Figure(
        "Effective rank",
        "dimensions",
        "How many directions the outputs of a layer use. A fall over depth is a collapse of the representation.",
        "smoothing",
        "low",
    ),
    "scalar_alpha": Figure(
        "α, identity", "learned value", "Shaped attention's weight of the identity.", "scalars", "size"
    ),
    "scalar_beta": Figure(
        "β, attention",
        "learned value",
        "Shaped attention's weight of what attention mixes. Near 0 the head is off.",
        "scalars",
        "size",
    ),
    "scalar_gamma": Figure(
        "γ, centre",
        "learned value",
        "Shaped attention's weight of the centre, what attention would be without any content.",
        "scalars",
        "size",
    ),
    "scalar_gain": Figure(
        "Branch gain",
        "learned value",
        "The weight of a branch beside the skip (ReZero, SAS). A branch whose gain stays 0 is switched off.",
        "scalars",
        "size",
    ),
    "scalar_skip_gain": Figure(
        "Skip gain", "learned value", "The weight of the skip beside a branch.", "scalars", "size"
    ),
}

PREFIX_OF_SCALARS = "scalar_"


def figure(name: str) -> Figure:
    """What is known of a figure; one that is not known gets its name as title."""
    if name in FIGURES:
        return FIGURES[name]
    plain = name.removeprefix(PREFIX_OF_SCALARS).replace("_", " ")
    if name.startswith(PREFIX_OF_SCALARS):
        return Figure(plain, "learned value", "A learned scalar of each layer's block.", "scalars", "size")
    return Figure(plain.capitalize(), "", "", "other")


def badness(name: str, values: np.ndarray) -> np.ndarray:
    """Largest where a value of the figure is worst; NaN stays."""
    side = figure(name).worst
    return -values if side == "low" else np.abs(values) if side == "size" else values


def worst(name: str, values: np.ndarray) -> np.ndarray:
    """The one of the last axis' values that speaks for all: [..., k] -> [...]; NaN if one of them is NaN."""
    at = badness(name, values).argmax(axis=-1)  # the first NaN, if there is one
    return np.take_along_axis(values, at[..., None], axis=-1)[..., 0]
