"""The rendered batch script in a real queue, around a trainer that only notes how it was called."""

import json
import sys
from pathlib import Path

import pytest

from pretrain.launch.script import REPOSITORY, Job, render

from .cluster import Cluster

pytestmark = pytest.mark.slurm

# Ends like a run that was told to stop, as often as its first override says; each task notes its call.
TRAINER = """
import json, os, pathlib, sys
runs = int(sys.argv[-1].partition("=")[2])
restart = int(os.environ.get("SLURM_RESTART_COUNT", 0))
note = {"argv": sys.argv[1:], "rank": os.environ["SLURM_PROCID"], "node": os.environ["SLURMD_NODENAME"]}
pathlib.Path(f"call_{restart}_{note['rank']}.json").write_text(json.dumps(note | {"cwd": os.getcwd()}))
print(f"task {note['rank']} of start {restart}", flush=True)
sys.exit(75 if restart < runs else 0)
"""
AWKWARD = ('data.train=it\'s a "text" $HOME `id` \\ * %j;&', "data.glob=**/*.py", "name=")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the real template and the stand-in trainer, under a path that needs quoting."""
    root = tmp_path / 'my "deep" check out 100%'
    (root / "slurm").mkdir(parents=True)
    (root / "pretrain").mkdir()
    (root / "slurm" / "train.sbatch").write_bytes((REPOSITORY / "slurm" / "train.sbatch").read_bytes())
    (root / "pretrain" / "train.py").write_text(TRAINER)
    return root


def finish(cluster: Cluster, root: Path, job: Job) -> tuple[dict[str, str], str]:
    """Submit, wait for the end; the job's last description and its log."""
    run_dir = root / "runs" / "r 1"
    (run_dir / "slurm").mkdir(parents=True)
    script = run_dir / "slurm" / "train.sbatch"
    script.write_text(render(job, "awkward", run_dir, root, sys.executable, repository=root))
    number = cluster.run("sbatch", "--parsable", str(script))
    ended = cluster.wait_for_end(number, timeout=60)
    return ended, (run_dir / "slurm" / f"{number}.out").read_text()


def test_job_told_to_stop_goes_back_into_the_queue_with_the_same_command(cluster: Cluster, checkout: Path):
    job = Job("my recipe.yaml", (*AWKWARD, "runs=1"), nodes=2, tasks_per_node=1, gpus_per_node=0, time="5")
    ended, log = finish(cluster, checkout, job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1")

    calls = {path.stem: json.loads(path.read_text()) for path in checkout.glob("call_*.json")}
    assert sorted(calls) == ["call_0_0", "call_0_1", "call_1_0", "call_1_1"]
    expected = ["--recipe", "my recipe.yaml", "--resume", "auto", *AWKWARD, "runs=1"]
    assert all(call["argv"] == expected for call in calls.values())
    assert all(call["cwd"] == str(checkout) for call in calls.values())
    assert {calls["call_0_0"]["node"], calls["call_0_1"]["node"]} == {"n1", "n2"}

    # One log for all starts: the second did not truncate what the first wrote.
    assert "task 1 of start 0" in log
    assert "requeue as restart 1 of 20" in log
    assert "task 0 of start 1" in log


def test_job_without_restarts_left_ends_with_75(cluster: Cluster, checkout: Path):
    job = Job("r", ("runs=9",), nodes=1, tasks_per_node=1, gpus_per_node=0, time="5", max_restarts=0)
    ended, log = finish(cluster, checkout, job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "75:0", "0")
    assert "requeue as" not in log
