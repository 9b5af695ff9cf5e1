"""Shared by all tests: a small real corpus, its caches, and a small recipe over it."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

RECIPE = """\
model: {{encoder_layers: 3, decoder_layers: 3, hidden_size: 32, num_heads: 2, ffn_size: 64}}
data: {{train: {corpus}, glob: "**/*.py", vocab_size: 800, sequence_length: 48}}
run: {{cache: {cache}}}
batch: {{global_batch_size: 8, micro_batch_size: 2}}
optimizer: {{lr: 0.002}}
schedule: {{kind: linear, warmup_steps: 4}}
train: {{max_steps: 8, threads: 1}}
evaluation: {{interval: 4, samples: 10}}
monitors: {{interval: 4, tensorboard: false}}
checkpoint: {{interval: 4}}
"""


@pytest.fixture(scope="session")
def small_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe file: 3+3 DeepNorm layers over the source of asyncio; its caches are built once a session."""
    folder = tmp_path_factory.mktemp("small")
    corpus = Path(sysconfig.get_path("stdlib")) / "asyncio"
    recipe = folder / "small.yaml"
    recipe.write_text(RECIPE.format(corpus=corpus, cache=folder / "cache"))
    return recipe


@pytest.fixture
def command(small_recipe: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """`command("name", "key=value", ...)`: the trainer's arguments for a run in tmp_path/name."""

    def build(run: str, *overrides: str) -> list[str]:
        return ["--recipe", str(small_recipe), f"run.dir={tmp_path / run}", *overrides]

    return build
