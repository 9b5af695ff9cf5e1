"""Real text that every machine has: packages of the Python standard library."""

import sysconfig
from functools import partial
from pathlib import Path

import pytest

from pretrain.config.schema import Experiment
from pretrain.data.corpus import NOTHING_HELD_OUT, open_corpus, scan
from pretrain.data.prepare import prepare
from pretrain.data.tokenizer import Tokenizer, train_tokenizer, training_lines


@pytest.fixture(scope="session")
def sources():
    """A folder of about thirty Python files."""
    return Path(sysconfig.get_path("stdlib")) / "asyncio"


@pytest.fixture(scope="session")
def corpus(sources):
    return open_corpus(str(sources), "**/*.py")


@pytest.fixture(scope="session")
def model_path(corpus, tmp_path_factory):
    """A SentencePiece model of 800 pieces, 100 sentinels among them."""
    path = tmp_path_factory.mktemp("tokenizer") / "small.model"
    lines = training_lines(corpus, NOTHING_HELD_OUT, scan(corpus).characters)
    path.write_bytes(train_tokenizer(lines, vocab_size=800, sentinels=100))
    return path


@pytest.fixture(scope="session")
def tokenizer(model_path):
    return Tokenizer.load(model_path, sentinels=100)


def small_experiment(folder, sources, cache="cache", seed=1234, objective=None, samples=64, **data):
    data = {"train": str(sources), "glob": "**/*.py", "vocab_size": 800, "sequence_length": 32, **data}
    return Experiment.model_validate(
        {
            "run": {"cache": str(folder / cache)},
            "data": data,
            "train": {"seed": seed},
            "evaluation": {"samples": samples},
            "objective": {"kind": "span_denoising", **(objective or {})},
        }
    )


@pytest.fixture
def experiment(tmp_path, sources):
    """Makes an experiment over the small corpus with a cache of the test's own; takes keys of `data` and others."""
    return partial(small_experiment, tmp_path, sources)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, sources):
    """The data of `experiment()` in a cache that all tests share; none may change it."""
    return prepare(small_experiment(tmp_path_factory.mktemp("prepared"), sources), quiet=True)
