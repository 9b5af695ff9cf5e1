"""The real launcher, real processes, real signals."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import psutil
import pytest
from harness import figures, free_port, lines, losses

ROOT = Path(__file__).resolve().parents[2]
DEEPSPEED = Path(sys.executable).with_name("deepspeed")
PP2 = "parallel.pipeline_stages=2"

pytestmark = pytest.mark.slow


def launch(argv, processes=2, **kwargs) -> subprocess.Popen[str]:
    """`deepspeed --num_gpus N pretrain/train.py ...` in a session of its own, as a terminal would have it."""
    head = [str(DEEPSPEED), "--num_gpus", str(processes), "--master_port", str(free_port()), "pretrain/train.py"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*head, *argv], cwd=ROOT, start_new_session=True, **{**pipes, **kwargs})


def finished(process: subprocess.Popen[str], timeout: float = 120) -> str:
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, output
    return output


def wait_for(condition, seconds: float = 90.0):
    """Poll until the condition gives something true; returns it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def step_reached(run: Path, step: int) -> bool:
    path = run / "metrics.jsonl"
    return path.exists() and f'"step": {step},' in path.read_text()


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that run train.py below a launcher."""
    return [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "pretrain/train.py" in child.cmdline() and "deepspeed.launcher.launch" not in child.cmdline()
    ]


@pytest.fixture(scope="module")
def twenty_steps(small_recipe, tmp_path_factory):
    """20 steps of one process and of two layouts under the launcher, some of them clipped."""
    folder = tmp_path_factory.mktemp("twenty")

    def argv(run, *overrides):
        common = ["train.max_steps=20", "optimizer.clip_norm=1.2", "evaluation.interval=0"]
        return ["--recipe", str(small_recipe), f"run.dir={folder / run}", *common, *overrides]

    one = subprocess.run([sys.executable, "pretrain/train.py", *argv("one")], cwd=ROOT, capture_output=True, text=True)
    assert one.returncode == 0, one.stderr
    finished(launch(argv("data_parallel")))
    finished(launch(argv("two_stages", PP2)))
    return folder


@pytest.mark.parametrize("layout", ["data_parallel", "two_stages"])
def test_twenty_steps_are_those_of_one_process(layout, twenty_steps):
    one, other = twenty_steps / "one", twenty_steps / layout
    norms = figures(one, "grad_norm")
    assert min(norms) < 1.2 < max(norms), "some steps must be clipped and some not"
    # fp32 sums in another order: a few 1e-7 a step.
    assert losses(other) == pytest.approx(losses(one), rel=1e-5)
    assert figures(other, "grad_norm") == pytest.approx(norms, rel=1e-5)
    assert figures(other, "validation_loss") == pytest.approx(figures(one, "validation_loss"), rel=1e-5)


def test_a_run_leaves_what_the_design_promises(twenty_steps):
    names = {path.name for path in (twenty_steps / "two_stages").iterdir()}
    assert {
        "config.yaml",
        "metrics.jsonl",
        "layers.jsonl",
        "events.jsonl",
        "summary.json",
        "checkpoints",
        "logs",
    } <= names
    events = [(event["event"], event["step"]) for event in lines(twenty_steps / "one" / "events.jsonl")]
    # A save is logged when it is complete, which may be after the step in which it began. The alert is that of the
    # source use: 20 steps wake no encoder.
    others = [event for event in events if event[0] != "save"]
    assert others == [("start", 0), ("evaluate", 20), ("alert", 20), ("end", 20)]
    assert [step for event, step in events if event == "save"] == [4, 8, 12, 16, 20]


def test_kill_9_then_the_same_command_gives_the_same_run(twenty_steps, small_recipe, tmp_path):
    common = ["train.max_steps=20", "optimizer.clip_norm=1.2", "evaluation.interval=0", "checkpoint.interval=8", PP2]
    argv, run = ["--recipe", str(small_recipe), f"run.dir={tmp_path / 'run'}", *common], tmp_path / "run"
    process = launch(argv)
    wait_for(lambda: step_reached(run, 10))
    for rank in ranks_of(process):
        rank.kill()
    process.communicate(timeout=60)
    executed = len(losses(run))
    finished(launch(argv))
    (resumed,) = [event["step"] for event in lines(run / "events.jsonl") if event["event"] == "resume"]
    assert 0 < resumed < executed < 20, "resumed above 0, with steps to execute again"
    assert losses(run) == losses(twenty_steps / "two_stages")


LONG = ("train.max_steps=4000", "checkpoint.interval=0", "evaluation.interval=0", "monitors.interval=0")


def saved_step(run: Path) -> int:
    return int((run / "checkpoints" / "latest").read_text().removeprefix("step_"))


def goes_on(run: Path, argv) -> None:
    """The same command resumes above 0 and reaches a later step."""
    step = saved_step(run)
    assert step > 0
    finished(launch([*argv, f"train.stop_at_step={step + 2}"]))
    assert len(losses(run)) == step + 2
    assert [event["step"] for event in lines(run / "events.jsonl") if event["event"] == "resume"] == [step]


def test_sigterm_to_the_ranks_saves_and_the_run_goes_on(command, tmp_path):
    argv, run = command("run", PP2, *LONG), tmp_path / "run"
    process = launch(argv)
    wait_for(lambda: step_reached(run, 3))
    for rank in ranks_of(process):
        rank.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert "return code = 75" in output, "the ranks' exit code, as the launcher reports it"
    ends = [event for event in lines(run / "events.jsonl") if event["event"] in ("signal", "end")]
    assert [(event["event"], event["reason"]) for event in ends] == [("signal", "SIGTERM"), ("end", "SIGTERM")]
    assert saved_step(run) == len(losses(run))
    goes_on(run, argv)


def test_ctrl_c_saves(command, tmp_path):
    """SIGINT to the whole process group, as a terminal sends it; the launcher adds SIGTERM."""
    argv, run = command("run", PP2, *LONG), tmp_path / "run"
    process = launch(argv)
    wait_for(lambda: step_reached(run, 3))
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert saved_step(run) == len(losses(run))
    reasons = {event["reason"] for event in lines(run / "events.jsonl") if event["event"] == "end"}
    assert reasons <= {"SIGINT", "SIGTERM"}
    assert reasons


def test_a_closed_terminal_saves(command, tmp_path):
    """The kernel hangs up on all that runs in it: runner, launch.py and ranks; and nobody reads what they still say."""
    argv, run = command("run", PP2, *LONG), tmp_path / "run"
    ours, theirs = os.openpty()
    os.set_blocking(ours, False)

    def own_terminal() -> None:
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    process = launch(argv, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=own_terminal)
    os.close(theirs)

    def reached() -> bool:
        with contextlib.suppress(BlockingIOError):
            os.read(ours, 1 << 16)  # a terminal that nobody reads from stops its writers
        return step_reached(run, 3)

    wait_for(reached)
    ranks = ranks_of(process)
    assert len(ranks) == 2
    os.close(ours)
    _, alive = psutil.wait_procs(ranks, timeout=60)
    assert not alive
    process.wait(60)
    ends = [event for event in lines(run / "events.jsonl") if event["event"] in ("signal", "end")]
    assert [(event["event"], event["reason"]) for event in ends] == [("signal", "SIGHUP"), ("end", "SIGHUP")]
    assert saved_step(run) == len(losses(run))
    goes_on(run, argv)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_ranks_end_when_their_launcher_has_died(how, command, tmp_path):
    """A signal to `deepspeed` reaches only its runner; the ranks notice, save and end, and free the folder."""
    argv, run = command("run", PP2, *LONG), tmp_path / "run"
    process = launch(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: step_reached(run, 3))
    ranks = ranks_of(process)
    assert len(ranks) == 2
    process.send_signal(how)
    _, alive = psutil.wait_procs(ranks, timeout=60)
    assert not alive
    assert lines(run / "events.jsonl")[-1]["reason"] in ("launcher died", "SIGTERM")
    assert saved_step(run) == len(losses(run))


def test_one_folder_has_one_writer(command, tmp_path):
    argv, run = command("run", *LONG), tmp_path / "run"
    first = subprocess.Popen(
        [sys.executable, "pretrain/train.py", *argv], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: step_reached(run, 2))
        second = subprocess.run(
            [sys.executable, "pretrain/train.py", *argv], cwd=ROOT, capture_output=True, text=True, timeout=90
        )
        assert second.returncode == 2
        assert "is in use by" in second.stderr
        assert str(first.pid) in second.stderr
    finally:
        first.kill()
        first.wait()
    with_lock_freed = [sys.executable, "pretrain/train.py", *argv, "train.stop_at_step=1"]
    assert subprocess.run(with_lock_freed, cwd=ROOT, capture_output=True).returncode == 0
