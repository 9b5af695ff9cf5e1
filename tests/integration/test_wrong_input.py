"""Wrong input: one line that names key, value and cure, and exit code 2, before any process group starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from harness import refused

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("overrides", "world_size", "expected"),
    [
        (["optimizer.lrr=1"], 1, ["optimizer.lrr", "optimizer.lr"]),
        (["model.num_heads=3"], 1, ["model.hidden_size", "model.num_heads", "2 or 4"]),
        (["batch.global_batch_size=9"], 1, ["batch.global_batch_size", "9", "8 or 10"]),
        (["parallel.pipeline_stages=2", "parallel.zero_stage=2"], 2, ["parallel.zero_stage", "zero_stage=1"]),
        (["train.precision=fp16"], 1, ["train.precision", "fp16", "bf16"]),
        (["parallel.pipeline_stages=3"], 2, ["parallel.pipeline_stages", "number of processes = 2"]),
        (["parallel.pipeline_stages=3", "model.encoder_layers=1", "model.decoder_layers=1"], 3, ["model's 2 layers"]),
        (["--resume", "must"], 1, ["--resume must", "no checkpoint"]),
        (["--init-from", "/no/such/checkpoint"], 1, ["/no/such/checkpoint"]),
        (["data.train=/no/such/corpus"], 1, ["data.train", "/no/such/corpus"]),
        (["model.block.kind=deepnrom"], 1, ["model.block.kind", "deepnorm"]),
        (["train.max_steps=abc"], 1, ["train.max_steps", "abc"]),
        (["--resume", "mustn't"], 1, ["--resume"]),
    ],
)  # fmt: skip
def test_overrides(overrides, world_size, expected, command):
    error = refused(command("run", *overrides), world_size)
    for part in expected:
        assert part in error


def test_empty_corpus(command, tmp_path):
    (tmp_path / "corpus").mkdir()
    assert "data.train" in refused(command("run", f"data.train={tmp_path / 'corpus'}"))


def test_unknown_recipe():
    error = refused(["--recipe", "demmo"])
    assert "demmo" in error
    assert "demo" in error.replace("demmo", "")


@pytest.mark.parametrize("key", ["elasticity", "amp", "curriculum_learning"])
def test_key_that_deepspeed_removed(key, command, tmp_path):
    config = tmp_path / "ds.json"
    config.write_text(json.dumps({key: {"enabled": True}}))
    assert key in refused(command("run", "--deepspeed_config", str(config)))


def test_deepspeed_json_in_conflict_with_the_experiment(command, tmp_path):
    config = tmp_path / "ds.json"
    config.write_text(json.dumps({"gradient_clipping": 0.3}))
    error = refused(command("run", "--deepspeed_config", str(config)))
    assert "gradient_clipping" in error
    assert "optimizer.clip_norm" in error


def test_from_the_shell(small_recipe, tmp_path):
    """The real command: exit code 2, one line on standard error, nothing on standard output, no folder made."""
    argv = [sys.executable, "pretrain/train.py", "--recipe", str(small_recipe), f"run.dir={tmp_path / 'run'}"]
    done = subprocess.run([*argv, "model.hiden_size=8"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "did you mean 'model.hidden_size'" in done.stderr
    assert not (tmp_path / "run").exists()
