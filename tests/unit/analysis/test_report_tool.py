"""tools/report.py as a command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pretrain

from .synthetic_runs import embedded, write_run

ROOT = Path(pretrain.__file__).parents[1]


def run_tool(*arguments: object, code: str | None = None) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-c", code] if code else [sys.executable, str(ROOT / "tools" / "report.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([*start, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=60)


def test_default_output_is_in_the_run(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    done = run_tool(path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{path / 'report.html'}\n", "")
    assert embedded(path / "report.html")["runs"][0]["label"] == "demo"


def test_comparison_to_a_new_folder(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in "ab"]
    out = tmp_path / "new" / "page.html"
    assert run_tool(*runs, "-o", out).returncode == 0
    assert len(embedded(out)["runs"]) == 2


@pytest.mark.parametrize("arguments", [[], ["nowhere"], ["a", "b"], ["a", "--wrong"]])
def test_wrong_input_is_one_line(arguments: list[str]) -> None:
    done = run_tool(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_help_and_version() -> None:
    assert "python tools/report.py runs/demo" in run_tool("--help").stdout
    assert run_tool("--version").stdout == f"kilolayer {pretrain.__version__}\n"


def test_starts_without_torch() -> None:
    code = (
        "import sys, pretrain.analysis.report; print(sorted({'torch', 'deepspeed', 'transformers'} & set(sys.modules)))"
    )
    assert run_tool(code=code).stdout == "[]\n"
