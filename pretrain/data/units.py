"""What an objective's samples are made of: a stream of text, or pairs of texts.

An objective states its unit as `unit`; one that states none takes text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pretrain.data.corpus import Corpus, open_corpus
from pretrain.data.hf_dataset import PREFIX, open_hf_dataset
from pretrain.data.pairs import PairSamples
from pretrain.data.parallel import open_pairs
from pretrain.data.samples import Samples
from pretrain.data.tokens import TokenFile
from pretrain.objectives.registry import OBJECTIVES

if TYPE_CHECKING:
    from pretrain.config.schema import Experiment

TEXT = "text"


@dataclass(frozen=True)
class Unit:
    """How its corpora and token files are opened.

    Attributes:
        open: (experiment, spec, key) -> corpus; no document is read.
        samples: (token file, objective, seed, split, shuffle, fingerprint) -> samples.
        sequences: sequences of the token file for one document.
    """

    open: Callable[[Experiment, str, str], Corpus]
    samples: Callable[[TokenFile, Any, int, str, bool, str], Samples]
    sequences: int


def unit_of(experiment: Experiment) -> Unit:
    """The unit of the experiment's objective."""
    return UNITS[unit_name(experiment)]


def unit_name(experiment: Experiment) -> str:
    return getattr(OBJECTIVES.of(experiment.objective), "unit", TEXT)


def _open_text(experiment: Experiment, spec: str, key: str) -> Corpus:
    if spec.startswith(PREFIX):
        return open_hf_dataset(spec, experiment.data.glob, key)
    return open_corpus(spec, experiment.data.glob, key)


def _open_pairs(experiment: Experiment, spec: str, key: str) -> Corpus:
    objective: Any = experiment.objective
    return open_pairs(spec, objective.source_language, objective.target_language, key)


def _text_samples(file: TokenFile, *others: Any) -> Samples:
    return Samples(file.tokens, *others)


UNITS = {
    TEXT: Unit(_open_text, _text_samples, sequences=1),
    "pairs": Unit(_open_pairs, PairSamples, sequences=2),
}
