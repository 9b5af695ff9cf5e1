"""From the experiment's `data` section to samples, through caches that are built once.

Below run.cache: `corpora/KEY/facts.json` (content hash of a corpus, keyed by the listing of its files),
`tokenizers/KEY/tokenizer.model`, `tokens/KEY/{train,validation}.{bin,idx}`; each KEY is a hash of all that decides the
content.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from pretrain.data import fingerprint
from pretrain.data.cache import build_once
from pretrain.data.corpus import (
    EMBEDDED,
    NOTHING_HELD_OUT,
    Corpus,
    CorpusFacts,
    Document,
    Split,
    held_out_split,
    rank_of,
    scan,
)
from pretrain.data.hashing import digest
from pretrain.data.samples import Samples
from pretrain.data.tokenizer import SAMPLE_CHARACTERS, Tokenizer, train_tokenizer, training_lines
from pretrain.data.tokens import TokenFile, TokenWriter
from pretrain.data.units import unit_of
from pretrain.errors import DataError
from pretrain.objectives.cross_entropy import IGNORE_INDEX
from pretrain.objectives.registry import OBJECTIVES
from pretrain.objectives.tokens import SpecialTokens

if TYPE_CHECKING:
    from pretrain.config.schema import Experiment

log = logging.getLogger(__name__)

AUTO = "auto"
FORMAT = 1  # of the caches; raise it when their content changes for the same key
CHUNK = 1 << 20  # characters; longer documents are cut after a line end and encoded piece by piece
ENCODE_AT_ONCE = 256  # chunks
THREADS = 2
LOOKED_AT = 1000
"""Training samples of which one must have something to predict; mostly the first has."""


@dataclass(frozen=True)
class Source:
    """A corpus with what a scan found, and which of its documents are held out.

    `beside` is a validation corpus of its own whose documents must not be in this one; None where names say nothing
    about the text.
    """

    corpus: Corpus
    facts: CorpusFacts
    split: Split
    beside: Source | None = None

    @property
    def identity(self) -> str:
        """A hash of all that decides which documents are used."""
        beside = [self.beside.facts.fingerprint] if self.beside else []
        return digest(self.facts.fingerprint, self.split.threshold, *beside)

    def whole_split(self) -> Split:
        """`split` with the documents of `beside`, which is read for it."""
        if self.beside is None:
            return self.split
        ranks = frozenset(rank_of(document.name) for document in self.beside.corpus.documents())
        return Split(self.split.threshold, ranks)


@dataclass(frozen=True)
class PreparedData:
    """Everything a run needs of its data.

    `fingerprint` names all that decides the samples; `unigram_entropy` is that of the fixed validation targets, in
    nats a token: what a model reaches that knows only how frequent each token is.
    """

    tokenizer: Tokenizer
    objective: Any
    train: Samples
    validation: Samples
    fingerprint: str
    unigram_entropy: float


def prepare(experiment: Experiment, quiet: bool = False) -> PreparedData:
    """Build what is missing in the cache, then open it. Any number of processes may call this at once.

    Args:
        experiment: its sections run (cache), data, objective, train (seed) and evaluation (samples) are used.
        quiet: no progress bar, no count of skipped files.

    Raises:
        DataError: a corpus, tokenizer or cache that cannot be used.
        ConfigError: an objective that does not fit the tokenizer or the source length.
    """
    cache = cache_folder(experiment)
    train, validation = open_sources(experiment, quiet)
    tokenizer = open_tokenizer(experiment, train, quiet)
    objective = build_objective(experiment, tokenizer.special)
    files = open_tokens(cache, tokenizer, train, validation, quiet)
    name = _fingerprint(experiment, train, validation, tokenizer)
    unit = unit_of(experiment)
    splits = {
        split: unit.samples(files[split], objective, experiment.train.seed, split, split == "train", name)
        for split in ("train", "validation")
    }
    if not quiet:
        _say_left_out(splits, train, files["train"].documents // unit.sequences)
    targets = fixed_targets(splits["validation"], experiment.evaluation.samples)
    _need_targets(experiment, objective, targets, splits)
    return PreparedData(tokenizer, objective, **splits, fingerprint=name, unigram_entropy=unigram_entropy(targets))


def build_objective(experiment: Experiment, special: SpecialTokens) -> Any:
    """The experiment's objective for the tokenizer that has these pieces.

    Raises:
        ConfigError: it does not fit the tokenizer or the sequence length.
    """
    data = experiment.data
    return OBJECTIVES.build(experiment.objective, special, data.sequence_length, data.document_mask)


def cache_folder(experiment: Experiment) -> Path:
    return Path(experiment.run.cache).expanduser()


def facts_folder(cache: Path, corpus: Corpus) -> Path:
    return cache / "corpora" / digest(FORMAT, corpus.listing())[:32]


def tokenizer_folder(experiment: Experiment, train: Source, mask: bool) -> Path:
    """Where a tokenizer that is trained on `train` (`auto`) is kept."""
    vocab_size, sentinels = experiment.data.vocab_size, wanted_sentinels(experiment)
    key = digest(FORMAT, vocab_size, sentinels, SAMPLE_CHARACTERS, train.identity, *(["mask"] if mask else []))
    return cache_folder(experiment) / "tokenizers" / key[:32]


def tokens_folder(cache: Path, tokenizer: Tokenizer, train: Source, validation: Source) -> Path:
    return cache / "tokens" / digest(FORMAT, tokenizer.fingerprint, train.identity, validation.identity)[:32]


def wanted_sentinels(experiment: Experiment) -> int:
    """Sentinel pieces that the objective needs."""
    return int(getattr(experiment.objective, "sentinels", 0))


def wants_mask(experiment: Experiment) -> bool:
    """Whether the objective needs a mask piece."""
    return bool(getattr(experiment.objective, "mask_piece", False))


def open_sources(experiment: Experiment, quiet: bool = False) -> tuple[Source, Source]:
    """The training and the validation corpus; the same corpus with a split unless data.validation is stated."""
    data, cache = experiment.data, cache_folder(experiment)
    unit = unit_of(experiment)
    corpus = unit.open(experiment, data.train, "data.train")
    facts = _facts(cache, corpus, "data.train", quiet)
    if data.validation is None:
        split = held_out_split(facts, data.validation_fraction, data.train, corpus.noun)
        return Source(corpus, facts, split), Source(corpus, facts, split)
    held_out = unit.open(experiment, data.validation, "data.validation")
    validation = Source(held_out, _facts(cache, held_out, "data.validation", quiet), NOTHING_HELD_OUT)
    if not corpus.named_by_text:
        return Source(corpus, facts, NOTHING_HELD_OUT), validation
    if facts.fingerprint == validation.facts.fingerprint:
        raise DataError(
            f"data.validation: {data.validation} has the same {corpus.noun}s as data.train; leave the key out to hold "
            "out a share of them"
        )
    return Source(corpus, facts, NOTHING_HELD_OUT, beside=validation), validation


def open_tokenizer(experiment: Experiment, train: Source, quiet: bool = False, mask: bool = False) -> Tokenizer:
    """The experiment's tokenizer: the file it names, or one trained on the training documents (`auto`).

    It has a mask piece where the objective needs one, or `mask` asks for it.
    """
    data = experiment.data
    sentinels, mask = wanted_sentinels(experiment), mask or wants_mask(experiment)
    if data.tokenizer != AUTO:
        return Tokenizer.load(data.tokenizer, sentinels, mask)
    train_on = partial(train_tokenizer, vocab_size=data.vocab_size, sentinels=sentinels, mask=mask)
    build = partial(_build_tokenizer, source=train, train_on=train_on, quiet=quiet)
    folder = build_once(tokenizer_folder(experiment, train, mask), build)
    return Tokenizer.load(folder / "tokenizer.model", sentinels, mask)


def open_tokens(
    cache: Path, tokenizer: Tokenizer, train: Source, validation: Source, quiet: bool = False
) -> dict[str, TokenFile]:
    """The token files of both splits, documents ended by eos."""
    build = partial(_build_tokens, tokenizer=tokenizer, train=train, validation=validation, quiet=quiet)
    folder = build_once(tokens_folder(cache, tokenizer, train, validation), build)
    return {split: TokenFile(folder / split) for split in ("train", "validation")}


def fixed_targets(samples: Samples, count: int) -> np.ndarray:
    """Labels [min(count, len), T] of the fixed validation samples."""
    return np.stack([samples[index]["labels"] for index in range(min(count, len(samples)))])


def unigram_entropy(labels: np.ndarray) -> float:
    """H = sum p log 1/p over the tokens' frequencies in `labels` (any shape, -100 left out, one at least), in nats."""
    _, counts = np.unique(labels[labels != IGNORE_INDEX], return_counts=True)
    return float((counts / counts.sum() * np.log(counts.sum() / counts)).sum())


def _need_targets(experiment: Experiment, objective: Any, targets: np.ndarray, splits: dict[str, Samples]) -> None:
    """Raises DataError: the validation samples, or the first that would be trained on, have no token to predict."""
    chosen: Any = experiment.objective
    cures = ["a longer data.sequence_length", *getattr(objective, "more_targets", ())]
    what = f"objective.kind = {chosen.kind} finds no token to predict in"
    if not (targets != IGNORE_INDEX).any():
        if len(targets) < len(splits["validation"]):
            cures.insert(0, "more evaluation.samples")
        raise DataError(
            f"evaluation.samples = {experiment.evaluation.samples}: {what} the {len(targets):,} validation samples; "
            f"set {_any_of(cures)}, or give other text as data.validation"
        )
    train = splits["train"]
    looked_at = range(min(len(train), LOOKED_AT))
    if not any((train[index]["labels"] != IGNORE_INDEX).any() for index in looked_at):
        raise DataError(
            f"data.train: {what} the first {len(looked_at):,} of {len(train):,} samples; set {_any_of(cures)}, or give "
            "other text"
        )


def _any_of(cures: list[str]) -> str:
    return " or ".join([", ".join(cures[:-1]), cures[-1]] if len(cures) > 1 else cures)


def _fingerprint(experiment: Experiment, train: Source, validation: Source, tokenizer: Tokenizer) -> str:
    parts: dict[str, str | int | float] = {
        "corpus": train.facts.fingerprint[:16],
        "validation": validation.identity[:16],
        "tokenizer": tokenizer.fingerprint[:16],
        "sequence_length": experiment.data.sequence_length,
        "document_mask": experiment.data.document_mask,
        "seed": experiment.train.seed,
    }
    objective: Any = experiment.objective
    parts |= {f"objective.{name}": value for name, value in objective.model_dump(mode="json").items()}
    return fingerprint.join(parts)


def _say_left_out(splits: dict[str, Samples], train: Source, used: int) -> None:
    """Warn of documents that are in no sample; `used` is how many the training tokens have."""
    for split, samples in splits.items():
        if samples.left_out:
            log.warning("%s: left out %s", split, samples.left_out)
    if train.beside is not None and used < train.facts.documents:
        count, total, noun = train.facts.documents - used, train.facts.documents, train.corpus.noun
        log.warning("train: left out %s of %s %ss, which data.validation has too", f"{count:,}", f"{total:,}", noun)


def _facts(cache: Path, corpus: Corpus, key: str, quiet: bool) -> CorpusFacts:
    """Facts of the corpus, scanned only if its listing has changed since the last scan."""

    def build(folder: Path) -> None:
        (folder / "facts.json").write_text(json.dumps(scan(corpus, key).to_dict()))

    folder = build_once(facts_folder(cache, corpus), build)
    try:
        facts = CorpusFacts(**json.loads((folder / "facts.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder}: is damaged; remove it to have it built again") from error
    if facts.skipped and not quiet and corpus.spec != EMBEDDED:  # a few of its test files are broken on purpose
        log.warning("%s: left out %d %s", corpus.spec, facts.skipped, corpus.skips)
    return facts


def _build_tokenizer(folder: Path, source: Source, train_on: Callable[[Iterable[str]], bytes], quiet: bool) -> None:
    lines = training_lines(source.corpus, source.whole_split(), source.facts.characters)
    bar = tqdm(lines, desc="tokenizer", unit=" lines", disable=True if quiet else None)
    (folder / "tokenizer.model").write_bytes(train_on(bar))


def _build_tokens(folder: Path, tokenizer: Tokenizer, train: Source, validation: Source, quiet: bool) -> None:
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(TokenWriter(folder / split, tokenizer.vocab_size))
            for split in ("train", "validation")
        }
        held_out = train.whole_split().holds_out
        own = train.split == NOTHING_HELD_OUT  # validation has a corpus of its own
        routes: list[tuple[Source, Callable[[str], str | None]]] = [
            (train, lambda name: "train" if not held_out(name) else None if own else "validation")
        ]
        if own:
            routes.append((validation, lambda name: "validation"))
        for source, route in routes:
            for name, ids, ends in _encoded(source, tokenizer, quiet):
                split = route(name)
                if split is None:
                    continue
                writer = writers[split]
                writer.append(ids)
                if ends:
                    writer.append([tokenizer.special.eos])
                    writer.end_document()


def _encoded(source: Source, tokenizer: Tokenizer, quiet: bool) -> Iterator[tuple[str, list[int], bool]]:
    """(document's name, ids of a chunk, whether the document ends with it), in order."""
    bar = tqdm(
        total=source.facts.characters, desc="tokens", unit=" chars", unit_scale=True, disable=True if quiet else None
    )
    with bar:
        for group in _groups(source.corpus.sequences()):
            ids = tokenizer.encode_batch([text for _, text, _ in group], THREADS)
            for (name, text, ends), tokens in zip(group, ids, strict=True):
                yield name, tokens, ends
                bar.update(len(text))


def _groups(documents: Iterable[Document]) -> Iterator[list[tuple[str, str, bool]]]:
    """Chunks of documents in lists that are worth encoding by several threads, of bounded size."""
    group: list[tuple[str, str, bool]] = []
    held = 0
    for document in documents:
        chunks = list(_chunks(document.text))
        for number, chunk in enumerate(chunks, start=1):
            group.append((document.name, chunk, number == len(chunks)))
            held += len(chunk)
            if len(group) >= ENCODE_AT_ONCE or held >= 4 * CHUNK:
                yield group
                group, held = [], 0
    if group:
        yield group


def _chunks(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > CHUNK:
        cut = text.rfind("\n", start, start + CHUNK) + 1 or start + CHUNK
        yield text[start:cut]
        start = cut
    yield text[start:]
