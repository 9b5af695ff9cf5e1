"""From an experiment with parallel text to samples: splits without leaks, cache, resume, and what is said of it."""

import json
import logging

import numpy as np
import pytest
import torch
from pairs_by_hand import pairs_of

from pretrain.config.checks import check
from pretrain.data.describe import data_lines, sample_lines
from pretrain.data.fingerprint import differences
from pretrain.data.loader import BatchLoader, validation_batches
from pretrain.data.parallel import Pair
from pretrain.data.prepare import prepare
from pretrain.errors import UserError

from .catalogue_files import write_catalogue

VERBS = ["open", "close", "read", "write", "send", "print", "copy", "move"]
NOUNS = ["file", "folder", "page", "mail", "song", "photo", "key", "user", "disk", "clock"]


def sentences():
    """80 sources, each with two translations and in two spellings: 320 pairs."""
    for verb in VERBS:
        for noun in NOUNS:
            for source in (f"{verb} the {noun}", f"_{verb.title()} the {noun}..."):
                yield source, f"den {noun[::-1]} {verb[::-1]}en"
                yield source, f"{verb[::-1]}e das {noun[::-1]} bitte"


def tab_file(path, pairs):
    path.write_text("".join(f"{source}\t{target}\n" for source, target in pairs))
    return str(path)


@pytest.fixture
def spec(tmp_path):
    return tab_file(tmp_path / "pairs.tsv", sentences())


@pytest.fixture
def prepared_pairs(experiment, spec):
    """Prepares the sentences; takes keys of `data`, and `objective`."""

    def build(objective=None, quiet=True, cache="cache", seed=1234, **data):
        objective = {"kind": "translation", **(objective or {})}
        data = {"train": spec, "vocab_size": 400, "sequence_length": 24, "validation_fraction": 0.2, **data}
        return prepare(experiment(objective=objective, cache=cache, seed=seed, **data), quiet=quiet)

    return build


def texts(data, split):
    """The pairs of one epoch as text."""
    samples, decode = getattr(data, split), data.tokenizer.decode
    return [tuple(map(decode, pair)) for index in range(len(samples)) for pair in pairs_of(samples[index])]


@pytest.mark.parametrize("document_mask", [True, False])
def test_an_epoch_has_every_pair_once_as_it_was_written(prepared_pairs, document_mask):
    data = prepared_pairs(document_mask=document_mask)
    assert sorted(texts(data, "train") + texts(data, "validation")) == sorted(sentences())
    assert (len(data.train) < len(texts(data, "train"))) == document_mask


def test_no_source_is_in_both_splits_however_it_is_spelled(prepared_pairs):
    data = prepared_pairs()
    names = {split: {Pair(*pair).name for pair in texts(data, split)} for split in ("train", "validation")}
    assert len(names["train"]) + len(names["validation"]) == 80
    assert not names["train"] & names["validation"]
    assert 0.05 < len(names["validation"]) / 80 < 0.4


def test_sources_of_a_validation_file_are_not_trained_on(prepared_pairs, tmp_path, caplog):
    held_out = [("Open the file!", "auf"), ("fly to the moon", "zum mond"), ("close the key", "zu")]
    path = tab_file(tmp_path / "validation.tsv", held_out)
    data = prepared_pairs(validation=path, quiet=False)
    kept = [pair for pair in sentences() if Pair(*pair).name not in ("openthefile", "closethekey")]
    assert len(kept) == 312
    assert sorted(texts(data, "train")) == sorted(kept)
    assert sorted(texts(data, "validation")) == sorted(held_out)
    assert "train: left out 8 of 320 pairs, which data.validation has too" in caplog.messages
    other = prepared_pairs(validation=tab_file(tmp_path / "other.tsv", held_out[1:]))
    assert len(texts(other, "train")) == 316


def test_the_tokenizer_is_not_trained_on_what_validation_has(prepared_pairs, tmp_path):
    strange = [(f"xylophone {'zyx' * i}", f"qwertz {'qxq' * i}") for i in range(1, 40)]
    other = tab_file(tmp_path / "other.tsv", [("fly to the moon", "zum mond")])
    held_out = tab_file(tmp_path / "strange.tsv", strange)
    both = tab_file(tmp_path / "both.tsv", [*sentences(), *strange])
    alone = prepared_pairs(validation=held_out).tokenizer.fingerprint
    # One cache: the tokenizer that knows them must not be taken for the one that does not.
    assert prepared_pairs(train=both, validation=other).tokenizer.fingerprint != alone
    assert prepared_pairs(train=both, validation=held_out).tokenizer.fingerprint == alone


def test_the_order_is_the_same_whatever_is_asked_for_and_in_another_cache(prepared_pairs):
    first, again = prepared_pairs(document_mask=True), prepared_pairs(document_mask=True, cache="other")
    assert first.fingerprint == again.fingerprint
    for index in np.random.default_rng(0).permutation(2 * len(first.train)).tolist():
        for name, array in first.train[index].items():
            assert (array == again.train[index][name]).all()
    assert prepared_pairs(document_mask=True, seed=5).train.text(0).tolist() != first.train.text(0).tolist()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"objective": {"target_length": 30}}, ["objective.target_length"]),
        ({"document_mask": True}, ["document_mask"]),
        ({"validation_fraction": 0.4}, ["validation", "tokenizer"]),
    ],
)
def test_the_fingerprint_names_what_changed(prepared_pairs, changes, named):
    now = prepared_pairs(**changes).fingerprint
    assert [text.split(":")[0] for text in differences(prepared_pairs().fingerprint, now)] == named


def test_the_tokenizer_knows_both_sides(prepared_pairs):
    data = prepared_pairs()
    ids = {
        side: len(data.tokenizer.encode(text)) for side, text in (("source", "the folder"), ("target", "den redlof"))
    }
    assert max(ids.values()) < 7  # ten characters


@pytest.mark.parametrize("document_mask", [True, False])
def test_batches_resume_and_do_not_depend_on_the_number_of_ranks(prepared_pairs, document_mask):
    samples = prepared_pairs(document_mask=document_mask).train

    def steps(rank, size, count, start=None):
        loader = BatchLoader(samples, 1234, 8, 2, rank, size)
        if start:
            loader.load_state_dict(start)
        found = [loader.next() for _ in range(count)]
        state = loader.state_dict()
        loader.close()
        return found, state

    whole, _ = steps(0, 1, 4)
    assert ("decoder_attention_mask" in whole[0][0]) == document_mask
    _, state = steps(0, 1, 2)
    parts = [steps(rank, 2, 2, state)[0] for rank in range(2)]
    for step in range(2):
        for number, batch in enumerate(whole[2 + step]):
            other = parts[number // 2][step][number % 2]
            assert all(torch.equal(batch[name], other[name]) for name in batch)


def test_validation_batches_have_rows_without_weight(prepared_pairs):
    data = prepared_pairs(document_mask=True)
    batches = validation_batches(data.validation, 64, 4, 0, 1)
    rows = sum(bool((batch["labels"][row] != -100).any()) for batch in batches for row in range(4))
    assert rows == min(64, len(data.validation))
    assert data.unigram_entropy > 1


def test_long_pairs_are_counted_in_a_warning(prepared_pairs, caplog):
    data = prepared_pairs(objective={"target_length": 8}, quiet=False)
    used = len(texts(data, "train"))
    total = data.train.tokens.tolist().count(data.tokenizer.special.eos) // 2
    assert 0 < used < total
    (line,) = [message for message in caplog.messages if message.startswith("train: ")]
    assert line.startswith(
        f"train: left out {total - used} of {total} pairs, which are longer than data.sequence_length = 24"
    )
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        prepared_pairs(objective={"target_length": 8})
        prepared_pairs(quiet=False)
    assert caplog.messages == []


def test_inspection_shows_the_pairs(prepared_pairs):
    data = prepared_pairs(document_mask=True)
    assert any(" pairs (mean), " in line for line in data_lines(data))
    shown = "\n".join(sample_lines(data, "validation", 0))
    for source, target in texts(data, "validation")[:2]:
        assert f"{source}</s>" in shown
        assert f"{target}</s>" in shown


def test_catalogues_become_samples(prepared_pairs, tmp_path):
    for language, ending in (("de", "en"), ("fr", "er")):
        messages = {source: f"{target}{ending}" for source, target in sentences()}
        write_catalogue(tmp_path, language, "program", messages)
    chosen = {"source_language": "fr", "target_language": "de"}
    data = prepared_pairs(objective=chosen, train=f"gettext:{tmp_path}")
    assert len(texts(data, "train") + texts(data, "validation")) == 80  # both spellings have the same translation
    for source, target in texts(data, "train"):
        assert source.removesuffix("er") == target.removesuffix("en")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train": "embedded"}, "data.train: embedded is no parallel text"),
        (
            {"train": "gettext:/nowhere", "objective": {"target_language": "de"}},
            "data.train: gettext:/nowhere finds no",
        ),
        ({"validation": "/absent.tsv"}, "data.validation: /absent.tsv does not exist"),
        ({"validation": "SPEC"}, "has the same pairs as data.train; leave the key out"),
        ({"train": "ONE"}, "has a single pair, so none can be held out"),
        ({"sequence_length": 2}, "data.train: none of the "),
    ],
)
def test_wrong_settings_end_in_one_line(prepared_pairs, spec, tmp_path, settings, said):
    files = {"SPEC": spec, "ONE": tab_file(tmp_path / "one.tsv", [("a b", "c"), ("A, b", "d")])}
    settings = {key: files.get(value, value) if isinstance(value, str) else value for key, value in settings.items()}
    with pytest.raises(UserError) as error:
        prepared_pairs(**settings)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_configuration_is_checked_before_anything_is_built(experiment, spec, tmp_path):
    translation = {"kind": "translation", "target_language": "de"}
    check(experiment(objective=translation, train=spec), 1, "cpu")
    jsonl = tmp_path / "validation.jsonl"
    jsonl.write_text(json.dumps({"source": "a", "target": "b"}))
    check(experiment(objective=translation, train=spec, validation=str(jsonl)), 1, "cpu")
    write_catalogue(tmp_path, "de", "program", {"a": "b"})
    check(experiment(objective=translation, train=f"gettext:{tmp_path}"), 1, "cpu")
    for settings in (
        {"train": f"gettext:{tmp_path}", "objective": {"kind": "translation"}},
        {"train": f"gettext:{tmp_path}", "objective": {"kind": "translation", "target_language": "fr"}},
        {"train": "embedded", "objective": translation},
        {"train": spec, "validation": "/absent.tsv", "objective": translation},
        {"train": spec},  # pairs, but an objective that takes text
    ):
        with pytest.raises(UserError, match=r"^(data\.|objective\.)"):
            check(experiment(**settings), 1, "cpu")
    assert not (tmp_path / "cache").exists()
