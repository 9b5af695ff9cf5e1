"""Whether a run is started again."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.launch.again import COUNTS, PATIENCE, main, restartable, why_not
from pretrain.launch.script import Job, render


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    return folder


def session(run: Path, *events: dict) -> None:
    """A session that begins and leaves these events."""
    with (run / "events.jsonl").open("a") as file:
        for event in ({"event": "start", "step": 0}, *events):
            file.write(json.dumps({"step": 1, "reason": "because", **event}) + "\n")


def checkpoint(run: Path, step: int) -> None:
    (run / "checkpoints" / f"step_{step:08d}").mkdir()


@pytest.mark.parametrize(
    ("code", "again"),
    [(0, False), (1, False), (2, False), (75, True), (76, True), (77, True), (130, False), (137, True), (139, True)],
)
def test_exit_codes(code, again, run):
    assert restartable(code) is again
    assert (why_not(run, code, PATIENCE) == "") is again


@pytest.mark.parametrize(
    ("event", "again"),
    [
        ({"event": "end", "exit_code": 0}, False),
        ({"event": "end", "exit_code": 75}, True),
        ({"event": "end", "exit_code": 76}, True),
        ({"event": "hang"}, True),
        ({"event": "crash"}, False),
        ({"event": "save"}, True),  # killed before it could say anything
    ],
)
def test_a_launcher_that_hides_the_code_is_not_asked(event, again, run):
    session(run, event)
    assert (why_not(run, None, PATIENCE) == "") is again


def test_wrong_input_leaves_nothing_and_is_not_repeated(run):
    assert "no session" in why_not(run.with_name("never_made"), None, PATIENCE)
    session(run, {"event": "end", "exit_code": 75})
    assert why_not(run, None, PATIENCE) == ""
    assert "no session has begun" in why_not(run, None, PATIENCE), "the same events as at the last question"


def test_sessions_before_the_loop_do_not_count(run):
    session(run, {"event": "end", "exit_code": 75})
    assert main([str(run), "--first"]) == 0
    assert main([str(run)]) == 1


@pytest.mark.parametrize("status", [77, None])
def test_no_progress_ends_it(status, run, capsys):
    for _ in range(PATIENCE):
        session(run, {"event": "hang"})
        assert why_not(run, status, PATIENCE) == ""
    checkpoint(run, 10)
    for _ in range(PATIENCE):
        session(run, {"event": "hang"})
        assert why_not(run, status, PATIENCE) == ""
    session(run, {"event": "hang"})
    assert "3 restarts brought no checkpoint beyond step 10" in why_not(run, status, PATIENCE)
    session(run, {"event": "hang"})
    assert why_not(run, status, PATIENCE) == "", "started again by hand, it has all its tries again"


def test_half_a_line_and_a_damaged_count_do_no_harm(run, capsys):
    session(run, {"event": "hang"})
    (run / COUNTS).write_text("{")
    with (run / "events.jsonl").open("a") as file:
        file.write('{"event": "cra\n')
    assert main([str(run)]) == 0
    session(run, {"event": "end", "exit_code": 0})
    assert main([str(run)]) == 1
    assert capsys.readouterr().err == f"{run}: not started again: done\n"


@pytest.mark.parametrize(("code", "requeued"), [(77, True), (2, False)])
def test_the_batch_script_asks(code, requeued, run, tmp_path):
    """The rendered script in bash, with srun and scontrol that only note their calls."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "__init__.py").touch()  # the user's own, which must not hide ours
    for name, body in (("srun", f"exit {code}"), ("scontrol", f'echo "$@" >> {tmp_path}/requeued')):
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(stat.S_IRWXU)
    job = Job("demo", (), nodes=1, tasks_per_node=1, gpus_per_node=0, time="5")
    script = render(job, "name", run, tmp_path, sys.executable)
    environ = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n"}
    done = subprocess.run(
        ["/bin/bash"], input=script, cwd=tmp_path, text=True, env=environ, capture_output=True, check=False
    )
    assert done.returncode == code
    assert (tmp_path / "requeued").exists() is requeued, done.stderr
    assert ("requeue as restart 1 of 20" in done.stdout) is requeued
    assert requeued or "exit code 2 would only repeat itself" in done.stderr
