"""A small tokenizer and a checkpoint, made once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from pretrain.data.tokenizer import train_tokenizer
from pretrain.hf.export import export
from pretrain.hf.probe import source_lines

from .checkpoints import BERT, GPT, SENTINELS, MakeCheckpoint, with_model, write_checkpoint


class Exported(NamedTuple):
    checkpoint: Path
    folder: Path


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer_model() -> bytes:
    return train_tokenizer(source_lines(), vocab_size=500, sentinels=SENTINELS, mask=True)


@pytest.fixture(scope="session")
def make_checkpoint(tokenizer_model: bytes) -> MakeCheckpoint:
    """`make_checkpoint(folder, config=CONFIG, step=7)`."""
    return partial(write_checkpoint, tokenizer_model)


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DeepNorm checkpoint that tests only read."""
    return make_checkpoint(tmp_path_factory.mktemp("deepnorm") / "checkpoint")


@pytest.fixture(scope="session")
def exported(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict], Exported]:
    """`exported(config)`: a checkpoint and its export, made once a config, that tests only read."""
    made: dict[str, Exported] = {}

    def make(config: dict) -> Exported:
        key = str(config)
        if key not in made:
            folder = tmp_path_factory.mktemp("exported")
            checkpoint = make_checkpoint(folder / "checkpoint", config)
            export(checkpoint, folder / "hf", verify=False)
            made[key] = Exported(checkpoint, folder / "hf")
        return made[key]

    return make


@pytest.fixture(scope="session")
def gpt2(exported: Callable[[dict], Exported]) -> Exported:
    return exported(GPT)


@pytest.fixture(scope="session")
def opt(exported: Callable[[dict], Exported]) -> Exported:
    return exported(with_model(GPT, block={"kind": "deepnorm"}))


@pytest.fixture(scope="session")
def bert(exported: Callable[[dict], Exported]) -> Exported:
    return exported(BERT)
