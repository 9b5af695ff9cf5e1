"""tools/reproduce.py from end to end: real trainings of one and two layers, three steps each."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


def test_figure_from_real_runs(tmp_path):
    corpus = Path(sysconfig.get_path("stdlib")) / "asyncio"
    small = ["data.vocab_size=512", "data.sequence_length=32", "batch.global_batch_size=2", "batch.micro_batch_size=2"]
    keys = [f"data.train={corpus}", f"run.cache={tmp_path / 'cache'}", "evaluation.samples=2", *small]
    head = [sys.executable, "tools/reproduce.py", "deepnet_update", "-o", str(tmp_path / "study")]
    command = [*head, "--depths", "1,2", "--steps", "3", *keys]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "[8/8]" in first.stdout
    assert "DeepNorm's model update is nearly constant in depth" in first.stdout
    table = (tmp_path / "study" / "table.md").read_text()
    assert table.count("| 1+1 |") == table.count("| 2+2 |") == 4
    assert "nan" not in table
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0
    assert again.stdout.startswith("8 of 8 runs are finished already\n")
    assert (tmp_path / "study" / "table.md").read_text() == table
