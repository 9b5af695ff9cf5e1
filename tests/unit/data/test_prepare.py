"""From an experiment to samples: real files, real processes, fingerprints."""

import json
import math
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from pretrain.data.fingerprint import differences
from pretrain.data.prepare import CHUNK, _chunks, fixed_targets, prepare, unigram_entropy
from pretrain.errors import ConfigError, DataError

PREPARE = """
import sys
from pretrain.config.schema import Experiment
from pretrain.data.prepare import prepare

data = prepare(Experiment.model_validate_json(sys.argv[1]), quiet=True)
print(data.fingerprint, data.train[5]["input_ids"].tolist(), data.unigram_entropy)
"""


def texts_of(samples, tokenizer):
    return "".join(tokenizer.show(samples.tokens[:]).split("</s>"))


def test_splits_hold_all_documents_each_in_one_of_them(prepared, sources):
    shown = {split: texts_of(getattr(prepared, split), prepared.tokenizer) for split in ("train", "validation")}
    for path in sources.glob("**/*.py"):
        text = path.read_text()
        assert (text in shown["train"]) != (text in shown["validation"])


def test_documents_end_with_eos(prepared, sources):
    count = sum((samples.tokens == 3).sum() for samples in (prepared.train, prepared.validation))
    assert count == sum(path.stat().st_size > 0 for path in sources.glob("**/*.py"))


def test_a_second_call_reads_the_cache_and_gives_the_same(experiment, tmp_path):
    first = prepare(experiment(), quiet=True)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    again = prepare(experiment(), quiet=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()} == files
    assert again.fingerprint == first.fingerprint
    assert again.unigram_entropy == first.unigram_entropy
    assert (again.train[7]["labels"] == first.train[7]["labels"]).all()


def test_another_cache_gives_the_same_data(experiment, prepared):
    other = prepare(experiment(cache="other"), quiet=True)
    assert other.fingerprint == prepared.fingerprint
    assert (other.train.tokens == prepared.train.tokens).all()


def test_two_processes_on_an_empty_cache_get_the_same(experiment, tmp_path):
    command = [sys.executable, "-c", PREPARE, experiment().model_dump_json()]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0] == outputs[1] != ""
    for kind in ("corpora", "tokenizers", "tokens"):
        folders = [path for path in (tmp_path / "cache" / kind).iterdir() if path.is_dir()]
        assert len(folders) == 1


def test_kill_minus_nine_during_each_build_leaves_a_cache_that_works(experiment, prepared, tmp_path):
    command = [sys.executable, "-c", PREPARE, experiment().model_dump_json()]
    killed = 0
    for kind in ("corpora", "tokenizers", "tokens"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while process.poll() is None and not list((tmp_path / "cache" / kind).glob(".*.unfinished")):
            assert time.monotonic() < end
        process.kill()
        killed += process.wait(30) == -signal.SIGKILL
    assert killed
    found = prepare(experiment(), quiet=True)
    assert found.fingerprint == prepared.fingerprint
    assert (found.train.tokens == prepared.train.tokens).all()
    assert (found.validation.tokens == prepared.validation.tokens).all()


def test_a_damaged_token_file_is_named(experiment, tmp_path):
    prepare(experiment(), quiet=True)
    (path,) = (tmp_path / "cache" / "tokens").glob("*/train.bin")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"train\.bin: is damaged"):
        prepare(experiment(), quiet=True)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, ["seed"]),
        ({"sequence_length": 33}, ["sequence_length"]),
        ({"objective": {"noise_density": 0.2}}, ["objective.noise_density"]),
        ({"objective": {"sentinels": 101}}, ["tokenizer", "objective.sentinels"]),
        ({"vocab_size": 801}, ["tokenizer"]),
        ({"glob": "*s.py"}, ["corpus", "validation", "tokenizer"]),
        ({"validation_fraction": 0.4}, ["validation", "tokenizer"]),
    ],
)
def test_the_fingerprint_names_what_changed(experiment, prepared, changes, named):
    other = prepare(experiment(**changes), quiet=True)
    assert [text.split(":")[0] for text in differences(prepared.fingerprint, other.fingerprint)] == named


def test_a_changed_file_changes_the_data(experiment, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text("\n".join(f"line {i} of {number}" for i in range(300)))
    settings = experiment(train=str(folder), glob="**/*", vocab_size=380)
    first = prepare(settings, quiet=True)
    (folder / "2.txt").write_text("\n".join(f"line {i} of 2" for i in range(301)))
    assert prepare(settings, quiet=True).fingerprint != first.fingerprint


def test_a_validation_corpus_of_its_own_leaves_all_of_train(experiment, prepared, tmp_path, sources):
    path = tmp_path / "validation.jsonl"
    path.write_text(json.dumps({"text": "x = 1\n" * 200}) + "\n")
    data = prepare(experiment(validation=str(path)), quiet=True)
    assert len(data.train.tokens) > len(prepared.train.tokens)
    assert set(data.tokenizer.decode(data.validation.tokens)) == set("x = 1\n")


def test_a_tokenizer_of_the_users_own_is_used(experiment, model_path, tokenizer):
    data = prepare(experiment(tokenizer=str(model_path)), quiet=True)
    assert data.tokenizer.fingerprint == tokenizer.fingerprint
    with pytest.raises(DataError, match=r"objective\.sentinels"):
        prepare(experiment(tokenizer=str(model_path), objective={"sentinels": 200}), quiet=True)


def test_wrong_settings_end_in_one_line(experiment, tmp_path):
    (tmp_path / "empty").mkdir()
    for error, settings in [
        (DataError, experiment(train=str(tmp_path / "empty"))),
        (DataError, experiment(validation=str(tmp_path / "empty"))),
        (DataError, experiment(tokenizer="absent.model")),
        (ConfigError, experiment(objective={"sentinels": 1})),
    ]:
        with pytest.raises(error) as found:
            prepare(settings, quiet=True)
        assert "\n" not in str(found.value)


def test_unigram_entropy_by_hand():
    assert unigram_entropy(np.array([[5, 5, 7, 9], [-100, -100, -100, -100]])) == pytest.approx(1.5 * math.log(2))
    assert unigram_entropy(np.arange(64)) == pytest.approx(math.log(64))


def test_unigram_entropy_is_of_the_fixed_validation_targets(prepared):
    assert prepared.unigram_entropy == unigram_entropy(fixed_targets(prepared.validation, 64))
    assert 2 < prepared.unigram_entropy < math.log(800)


def test_long_documents_are_cut_after_line_ends_and_lose_nothing():
    text = "a line of text\n" * 200_000 + "x" * (2 * CHUNK)
    chunks = list(_chunks(text))
    assert "".join(chunks) == text
    assert max(map(len, chunks)) <= CHUNK
    assert chunks[0].endswith("\n")
    assert list(_chunks("")) == [""]


@pytest.mark.slow
def test_the_embedded_corpus_is_ready_in_time(experiment):
    start = time.monotonic()
    data = prepare(experiment(train="embedded", vocab_size=4096, sequence_length=128), quiet=True)
    assert time.monotonic() - start < 100  # about 10 s on two cores
    assert data.tokenizer.vocab_size == 4096
    assert len(data.train) > 5000
    assert len(data.validation) > 64
    start = time.monotonic()
    prepare(experiment(train="embedded", vocab_size=4096, sequence_length=128), quiet=True)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("wordy", "named"),
    [
        ("train", "evaluation.samples = 2: objective.kind = masked_lm finds no token to predict in the 2 validation"),
        ("validation", "data.train: objective.kind = masked_lm finds no token to predict in the first "),
    ],
)
def test_samples_without_anything_to_predict_are_refused(experiment, tmp_path, wordy, named):
    """Whole words, where every word is longer than what may be predicted of a sample."""
    texts = {"train": "".join(chr(97 + i * i % 23) for i in range(4000)), "validation": "q" * 1500}
    texts[wordy] = "\n".join(f"line {number} of x = 1" for number in range(300))
    paths = {split: tmp_path / f"{split}.jsonl" for split in texts}
    for split, path in paths.items():
        path.write_text(json.dumps({"text": texts[split]}) + "\n")
    settings = experiment(
        objective={"kind": "masked_lm", "whole_word": True, "rate": 0.1},
        samples=2,
        train=str(paths["train"]),
        validation=str(paths["validation"]),
        vocab_size=300,
    )
    with pytest.raises(DataError) as found:
        prepare(settings, quiet=True)
    line = str(found.value)
    assert line.startswith(named)
    assert "a longer data.sequence_length, a larger objective.rate or objective.whole_word=false" in line
    assert ("more evaluation.samples" in line) == (wordy == "train")
    assert "\n" not in line


def test_one_kind_of_target_has_no_entropy():
    entropy = unigram_entropy(np.array([[7, 7, -100]]))
    assert f"{entropy:.3f}" == "0.000"
    assert unigram_entropy(np.array([1, 2, 3, 3])) == pytest.approx(1.5 * math.log(2))
