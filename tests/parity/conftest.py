"""A small tokenizer and a checkpoint, made once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from pretrain.data.tokenizer import train_tokenizer
from pretrain.hf.probe import source_lines

from .checkpoints import SENTINELS, MakeCheckpoint, write_checkpoint


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer_model() -> bytes:
    return train_tokenizer(source_lines(), vocab_size=500, sentinels=SENTINELS)


@pytest.fixture(scope="session")
def make_checkpoint(tokenizer_model: bytes) -> MakeCheckpoint:
    """`make_checkpoint(folder, config=CONFIG, step=7)`."""
    return partial(write_checkpoint, tokenizer_model)


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DeepNorm checkpoint that tests only read."""
    return make_checkpoint(tmp_path_factory.mktemp("deepnorm") / "checkpoint")
