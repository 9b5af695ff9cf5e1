"""Ranks of each launcher that is not SLURM's: they train as one process does, or end with one line."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from harness import losses

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"]
TRAINER = [sys.executable, "pretrain/train.py"]

pytestmark = pytest.mark.slow
needs_mpirun = pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun (openmpi-bin)")


def launched(head: list[str], argv: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    environ = os.environ | variables
    return subprocess.run([*head, *argv], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def steps(small_recipe, tmp_path_factory):
    """`steps(head)`: the losses of four steps of a launcher's ranks; `steps(TRAINER)` those of one process."""
    folder = tmp_path_factory.mktemp("launchers")

    def train(head: list[str], **variables: str) -> list[float]:
        run = folder / Path(head[0]).name
        keys = ["train.max_steps=4", "evaluation.interval=0", "monitors.interval=0"]
        done = launched(head, ["--recipe", str(small_recipe), f"run.dir={run}", *keys], **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return losses(run)

    return train


@pytest.fixture(scope="module")
def one_process(steps):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        # Left over in the shell from an earlier job; one process needs neither.
        return steps(TRAINER, MASTER_ADDR="gone.invalid", MASTER_PORT=str(taken.getsockname()[1]))


@pytest.mark.parametrize(
    "head",
    [
        pytest.param([str(BIN / "torchrun"), "--standalone", "--nproc_per_node=2", "pretrain/train.py"], id="torchrun"),
        pytest.param([*MPIRUN, *TRAINER], marks=needs_mpirun, id="mpirun"),
    ],
)
def test_ranks_of_a_launcher_do_the_steps_of_one_process(head, steps, one_process):
    assert steps(head) == pytest.approx(one_process, rel=1e-5)


@pytest.mark.parametrize("launcher", ["deepspeed", pytest.param("mpirun", marks=needs_mpirun)])
def test_a_port_in_use_is_one_line_of_rank_0(launcher, command):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        heads = {
            "deepspeed": [str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port", str(port), "pretrain/train.py"],
            "mpirun": [*MPIRUN, *TRAINER],
        }
        done = launched(heads[launcher], command("run"), MASTER_PORT=str(port))
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2, done.stderr
    assert len(errors) == 1, done.stderr
    assert f"MASTER_PORT={port} is in use" in errors[0]
    assert "Traceback" not in done.stderr
