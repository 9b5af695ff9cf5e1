"""rank_environment in real SLURM steps."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.launch.script import REPOSITORY

from .cluster import Cluster

pytestmark = pytest.mark.slurm
SCRIPT = str(Path(__file__).with_name("all_reduce.py"))


def test_tasks_of_two_nodes_meet_without_ssh_or_hostfile(cluster: Cluster):
    printed = cluster.run("srun", "--nodes=2", "--ntasks-per-node=1", sys.executable, SCRIPT)
    tasks = sorted((json.loads(line) for line in printed.splitlines()), key=lambda task: task["rank"])
    assert [task["rank"] for task in tasks] == [0, 1]
    assert [task["total"] for task in tasks] == [3, 3]
    assert {task["launcher"] for task in tasks} == {"slurm"}
    assert {(task["world_size"], task["local_rank"], task["local_world_size"]) for task in tasks} == {(2, 0, 1)}
    # n1 is no host name here: the address is what SLURM knows of the node.
    assert {task["master_addr"] for task in tasks} == {"127.0.0.1"}


def test_two_tasks_of_one_node_have_local_ranks(cluster: Cluster):
    printed = cluster.run("srun", "--nodes=1", "--ntasks=2", "--ntasks-per-node=2", sys.executable, SCRIPT)
    tasks = sorted((json.loads(line) for line in printed.splitlines()), key=lambda task: task["rank"])
    assert [(task["local_rank"], task["local_world_size"], task["total"]) for task in tasks] == [(0, 2, 3), (1, 2, 3)]


def test_steps_whose_ports_are_in_use_take_others(cluster: Cluster):
    printed = cluster.run("srun", "--nodes=2", "--ntasks-per-node=1", sys.executable, SCRIPT, "2")
    assert [json.loads(line)["total"] for line in printed.splitlines()] == [3, 3]


def test_a_stated_port_in_use_is_one_line_of_rank_0(cluster: Cluster):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        trainer = ["pretrain/train.py", "--recipe", "demo", "parallel.pipeline_stages=1"]
        done = subprocess.run(
            ["srun", "--nodes=1", "--ntasks=2", "--kill-on-bad-exit=1", sys.executable, *trainer],
            env=cluster.environ | {"MASTER_PORT": str(port)},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    said = [line for line in done.stderr.splitlines() if not line.startswith(("srun: ", "slurmstepd"))]
    assert "task 0: Exited with exit code 2" in done.stderr
    assert len(said) == 1, done.stderr
    assert said[0].startswith(f"error: MASTER_PORT={port} is in use on "), said
    assert "unset it, so that a free one is chosen" in said[0]


def test_plain_python_in_a_batch_script_is_one_process(cluster: Cluster, tmp_path: Path):
    script = tmp_path / "plain.sbatch"
    script.write_text(
        f"#!/bin/bash\n#SBATCH --nodes=2 --ntasks-per-node=1 --output={tmp_path}/out\n{sys.executable} {SCRIPT}\n"
    )
    cluster.wait_for_end(cluster.run("sbatch", "--parsable", str(script)), timeout=60)
    task = json.loads((tmp_path / "out").read_text())
    assert (task["launcher"], task["world_size"], task["total"]) == ("single", 1, 1)
