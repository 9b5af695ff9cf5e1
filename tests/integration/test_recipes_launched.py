"""A few recipes as users start them: the real launcher, the recipe's own tiny section, in both layouts."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from harness import figures, free_port, losses

ROOT = Path(__file__).resolve().parents[2]
DEEPSPEED = Path(sys.executable).with_name("deepspeed")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("recipe", "layout"),
    [
        ("bamboo_bert", ["parallel.pipeline_stages=2"]),
        ("sas_codeparrot", ["parallel.pipeline_stages=1", "parallel.zero_stage=2"]),
    ],
)
def test_five_steps(recipe, layout, tmp_path):
    run, corpus = tmp_path / "run", Path(sysconfig.get_path("stdlib")) / "asyncio"
    head = [str(DEEPSPEED), "--num_gpus", "2", "--master_port", str(free_port()), "pretrain/train.py"]
    keys = [f"run.dir={run}", f"run.cache={tmp_path / 'cache'}", f"data.train={corpus}", "evaluation.interval=1"]
    command = [*head, "--recipe", recipe, "--tiny", "train.max_steps=5", *layout, *keys]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(losses(run)) == 5
    validations = figures(run, "validation_loss")
    assert validations[-1] < validations[0]
