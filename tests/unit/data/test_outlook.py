"""What a run would have to build of its data, found out without building it."""

from __future__ import annotations

import pytest

from pretrain.data.corpus import NOTHING_HELD_OUT, scan
from pretrain.data.outlook import outlook
from pretrain.data.prepare import prepare
from pretrain.data.tokenizer import Tokenizer, planned_tokens, train_tokenizer, training_lines


@pytest.mark.parametrize(
    "objective", [{}, {"kind": "causal_lm"}, {"kind": "masked_lm"}, {"kind": "masked_lm", "whole_word": True}]
)
def test_sizes_are_those_of_the_built_data(experiment, tmp_path, objective):
    own = experiment(objective=objective)
    before = outlook(own)
    assert not (tmp_path / "cache").exists(), "nothing is built"
    data = prepare(own, quiet=True)
    for found in (before, outlook(own)):
        assert found.vocab_size == data.tokenizer.vocab_size
        for name in ("source_length", "target_length", "segmented"):
            assert getattr(found.objective, name) == getattr(data.objective, name)


def test_what_is_missing_is_named_and_no_more(experiment, model_path):
    own = experiment()
    assert outlook(own).missing == ("one reading of data.train", "a tokenizer of 800 pieces", "tokens")
    prepare(own, quiet=True)
    assert outlook(own).missing == ()
    assert outlook(experiment(sequence_length=64)).missing == ()
    assert outlook(experiment(vocab_size=900)).missing == ("a tokenizer of 900 pieces", "tokens")
    assert outlook(experiment(tokenizer=str(model_path))).missing == ("tokens",)
    assert outlook(experiment(cache="other", tokenizer=str(model_path))).missing == (
        "one reading of data.train",
        "tokens",
    )


def test_a_validation_corpus_of_its_own(experiment, tmp_path):
    (tmp_path / "held_out").mkdir()
    (tmp_path / "held_out" / "a.py").write_text("def one():\n    return 1\n" * 50)
    own = experiment(validation=str(tmp_path / "held_out"))
    assert outlook(own).missing[:2] == ("one reading of data.train", "one reading of data.validation")
    prepare(own, quiet=True)
    assert outlook(own).missing == ()


@pytest.mark.parametrize(("sentinels", "mask"), [(0, False), (100, False), (0, True), (7, True)])
def test_planned_pieces_are_those_of_a_trained_tokenizer(corpus, tmp_path, sentinels, mask):
    lines = training_lines(corpus, NOTHING_HELD_OUT, scan(corpus).characters)
    path = tmp_path / "a.model"
    path.write_bytes(train_tokenizer(lines, 600, sentinels, mask))
    assert Tokenizer.load(path, sentinels, mask).special == planned_tokens(sentinels, mask)
