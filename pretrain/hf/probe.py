"""Real text to compare models and tokenizers on: pieces of the Python standard library."""

from __future__ import annotations

import heapq
import inspect
import json.decoder
import textwrap

import numpy as np
import torch
from torch import Tensor

from pretrain.config.schema import Experiment
from pretrain.data.tokenizer import Tokenizer
from pretrain.objectives.registry import OBJECTIVES

SHARES = (1.0, 0.7, 0.3, 0.05)  # of a sample's full length: all but the first are padded
MODULES = (textwrap, json.decoder, heapq)
AWKWARD = (
    "",
    " ",
    "\t\tindented by tabs",
    "  two   spaces  inside and at the end  ",
    "line\nbreaks\r\nof both kinds\n\n",
    "naïve café, Größe, 日本語のテキスト, Ελληνικά, русский, العربية",
    "emoji 🧪🚀 and maths ∑ᵢ xᵢ² ≤ 1e-12",
    "\u00a0no-break\u200bzero-width\u0000nul",
)


def source_lines() -> list[str]:
    """Lines of a few modules of the standard library, without blank ones."""
    return [line for module in MODULES for line in inspect.getsource(module).splitlines() if line.strip()]


def probe_texts() -> list[str]:
    """Strings on which tokenizers are compared: source lines, and what commonly goes wrong."""
    return [*source_lines(), *AWKWARD]


def probe_batch(experiment: Experiment, tokenizer: Tokenizer, sequence_length: int) -> dict[str, Tensor]:
    """A batch as training makes it, of texts of different lengths: padding in sources and in targets.

    Every sample is one document without a prefix, whatever the experiment trains on: that is what a native class reads.

    Returns:
        int64 arrays of the objective, [4, S] or [4, T], and sample_key [4].
    """
    objective = OBJECTIVES.build(experiment.objective, tokenizer.special, sequence_length)
    ids = np.array(tokenizer.encode("\n".join(source_lines())), dtype=np.int64)
    rng = np.random.default_rng(0)
    samples = []
    for number, share in enumerate(SHARES):
        length = min(max(2, int(objective.raw_length * share)), objective.raw_length)
        text = np.resize(np.roll(ids, -number * len(ids) // len(SHARES)), length)
        samples.append(objective.sample(text, rng))
    batch = {key: torch.from_numpy(np.stack([sample[key] for sample in samples])) for key in samples[0]}
    batch["attention_mask"] = (batch["attention_mask"] != 0).long()
    batch["sample_key"] = torch.arange(len(samples))
    return batch
