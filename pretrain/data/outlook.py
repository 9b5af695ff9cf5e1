"""What a run would have to build of its data, without building it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pretrain.data.prepare import (
    AUTO,
    Source,
    build_objective,
    cache_folder,
    facts_folder,
    open_sources,
    open_tokenizer,
    tokenizer_folder,
    tokens_folder,
    wanted_sentinels,
    wants_mask,
)
from pretrain.data.tokenizer import Tokenizer, planned_tokens
from pretrain.data.units import unit_of

if TYPE_CHECKING:
    from pretrain.config.schema import Experiment


@dataclass(frozen=True)
class Outlook:
    """What decides the model's size, and what of the data is not in the cache yet, in the order of its building."""

    vocab_size: int
    objective: Any
    missing: tuple[str, ...]


def outlook(experiment: Experiment) -> Outlook:
    """Look into the cache. A tokenizer that would be trained has the pieces that data.vocab_size asks for.

    Raises:
        DataError: a corpus or tokenizer that cannot be used, as far as that is seen without reading the text.
        ConfigError: an objective that does not fit the tokenizer or the sequence length.
    """
    data, cache = experiment.data, cache_folder(experiment)
    corpora = {"data.train": data.train} | ({"data.validation": data.validation} if data.validation else {})
    opened = {key: unit_of(experiment).open(experiment, corpus, key) for key, corpus in corpora.items()}
    missing = [f"one reading of {key}" for key, corpus in opened.items() if not facts_folder(cache, corpus).is_dir()]
    sources = None if missing else open_sources(experiment, quiet=True)
    tokenizer = _tokenizer(experiment, sources)
    if tokenizer is None:
        missing.append(f"a tokenizer of {data.vocab_size:,} pieces")
    if tokenizer is None or sources is None or not tokens_folder(cache, tokenizer, *sources).is_dir():
        missing.append("tokens")
    planned = planned_tokens(wanted_sentinels(experiment), wants_mask(experiment))
    special = tokenizer.special if tokenizer else planned
    vocab_size = tokenizer.vocab_size if tokenizer else data.vocab_size
    return Outlook(vocab_size, build_objective(experiment, special), tuple(missing))


def _tokenizer(experiment: Experiment, sources: tuple[Source, Source] | None) -> Tokenizer | None:
    """The tokenizer if it is there."""
    data, mask = experiment.data, wants_mask(experiment)
    if data.tokenizer != AUTO:
        return Tokenizer.load(data.tokenizer, wanted_sentinels(experiment), mask)
    if sources is None or not tokenizer_folder(experiment, sources[0], mask).is_dir():
        return None
    return open_tokenizer(experiment, sources[0], quiet=True)
