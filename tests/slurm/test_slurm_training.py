"""Real training runs, submitted by tools/submit.py to two nodes."""

import email
import json
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pretrain.launch.script import REPOSITORY

from .cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus of real text, with its cache beside it."""
    folder = tmp_path_factory.mktemp("data") / "corpus"
    shutil.copytree(Path(email.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def submit(cluster: Cluster, run_dir: Path, corpus: Path, *overrides: str) -> str:
    """Submit the tiny demo with two pipeline stages, one a node; the job's number."""
    printed = cluster.run(
        *(sys.executable, str(REPOSITORY / "tools" / "submit.py"), "--recipe", "demo", "--tiny"),
        *("--nodes", "2", "--gpus-per-node", "0", "--cpus-per-task", "1", "--time", "5"),
        *(f"run.dir={run_dir}", f"run.cache={corpus.parent}/cache", "parallel.pipeline_stages=2"),
        *(f"data.train={corpus}", *overrides),
    )
    started = re.match(r"job (\d+): demo-tiny on 2 x 1 processes", printed)
    assert started, printed
    return started[1]


def lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON Lines file that may still be written to."""
    return (
        [json.loads(line) for line in file.read_text().splitlines(True) if line.endswith("\n")] if file.exists() else []
    )


def steps(run_dir: Path) -> list[int]:
    return [line["step"] for line in lines(run_dir / "metrics.jsonl") if "loss" in line]


def log_of(run_dir: Path, number: str) -> str:
    return (run_dir / "slurm" / f"{number}.out").read_text()


def test_submitted_run_trains_on_two_nodes(cluster: Cluster, tmp_path: Path, corpus: Path):
    run_dir = tmp_path / "run"
    number = submit(cluster, run_dir, corpus, "train.max_steps=4")
    ended = cluster.wait_for_end(number, timeout=120)
    assert (ended["JobState"], ended["ExitCode"], ended["NumNodes"]) == ("COMPLETED", "0:0", "2"), log_of(
        run_dir, number
    )
    assert steps(run_dir) == [1, 2, 3, 4]


def test_run_told_to_stop_saves_is_requeued_and_goes_on_to_the_end(cluster: Cluster, tmp_path: Path, corpus: Path):
    run_dir, last = tmp_path / "run", 80
    number = submit(
        cluster, run_dir, corpus, f"train.max_steps={last}", "checkpoint.interval=0", "evaluation.interval=0"
    )
    deadline = time.monotonic() + 60
    while len(steps(run_dir)) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    # What --signal=TERM@90 does before the time limit: to the steps, not to the batch script.
    cluster.run("scancel", "--signal=TERM", number)
    ended = cluster.wait_for_end(number, timeout=120)
    log = log_of(run_dir, number)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1"), log
    assert "requeue as restart 1 of" in log

    events = lines(run_dir / "events.jsonl")
    resumed = [event["step"] for event in events if event["event"] == "resume"]
    saved = [event["step"] for event in events if event["event"] == "save"]
    assert len(resumed) == 1
    assert 3 <= resumed[0] < last
    assert resumed[0] in saved
    assert steps(run_dir) == list(range(1, last + 1))
