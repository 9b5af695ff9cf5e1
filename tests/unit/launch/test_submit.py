import re
import shlex
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.errors import UserError
from pretrain.launch.script import REPOSITORY, Job, limit_seconds, render
from pretrain.launch.submit import main, submission_environment
from pretrain.state.index import Box, Index, Piece
from pretrain.state.writer import commit, rank_file, write_common_files, write_rank_file

RECIPE = """
model: {encoder_layers: 2, decoder_layers: 2, hidden_size: 32, num_heads: 2, ffn_size: 64}
batch: {global_batch_size: 8, micro_batch_size: 2}
parallel: {pipeline_stages: 2}
schedule: {kind: linear, warmup_steps: 2}
train: {max_steps: 8}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a recipe small.yaml and no SLURM in reach."""
    (tmp_path / "small.yaml").write_text(RECIPE)
    (tmp_path / "bin").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def fake_sbatch(folder: Path, body: str) -> None:
    program = folder / "bin" / "sbatch"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def call(*more: str, nodes: str = "2", gpus: str = "0", time: str = "10") -> int:
    return main(["--recipe", "small.yaml", "--nodes", nodes, "--gpus-per-node", gpus, "--time", time, *more])


def job(**changes: Any) -> Job:
    return replace(Job("r", (), nodes=2, tasks_per_node=4, gpus_per_node=4, time="1:00:00"), **changes)


def rendered(asked: Job, run_dir: Path = Path("/runs/r")) -> str:
    return render(asked, "name", run_dir, Path("/work"), "/venv/bin/python")


def write_checkpoint(folder: Path) -> None:
    """One parameter's weights, complete."""
    temporary = folder.with_name("unfinished")
    temporary.mkdir(parents=True)
    piece = Piece("w", (2,), Box.whole((2,)), 0, 2, 0, rank_file(0))
    files = {rank_file(0): write_rank_file(temporary, 0, [piece], {"weight": torch.zeros(2)})}
    write_common_files(temporary, Index([piece]), {}, {})
    commit(temporary, folder, int(folder.name.removeprefix("step_")), {}, files)


def directives(script: str) -> list[str]:
    return re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE)


def words_of(script: str) -> list[str]:
    """What bash makes of the line `command=(...)`."""
    line = re.search(r"^command=\(.*\)$", script, re.MULTILINE)
    assert line
    echo = f"{line[0]}; printf '%s\\0' \"${{command[@]}}\""
    done = subprocess.run(["/bin/bash", "-c", echo], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def test_script_says_what_was_asked():
    script = rendered(job(cpus_per_task=6, partition="gpu", account="me", save_seconds=120, max_restarts=3))
    assert directives(script) == [
        "--job-name=name",
        "--nodes=2",
        "--ntasks-per-node=4",
        "--time=1:00:00",
        "--requeue",
        "--gpus-per-node=4",
        "--cpus-per-task=6",
        "--partition=gpu",
        "--account=me",
        "--chdir=/work",
        "--output=/runs/r/slurm/%j.out",
        "--open-mode=append",
        "--signal=TERM@120",
    ]
    assert "max_restarts=3\n" in script
    # srun of SLURM 22.05 and later does not take --cpus-per-task from the job.
    assert re.search(r"^srun .*--cpus-per-task=6 ", script, re.MULTILINE)
    assert "%{" not in script


def test_script_leaves_out_what_was_not_asked():
    script = rendered(job(gpus_per_node=0, max_restarts=0))
    assert "--no-requeue" in directives(script)
    assert not re.search("gpus|cpus-per-task|partition|account", "\n".join(directives(script)))


def test_script_is_valid_bash():
    script = rendered(job(overrides=("a=(", "b=`")))
    subprocess.run(["/bin/bash", "-n"], input=script, text=True, check=True)


def test_command_reaches_the_trainer_word_for_word():
    awkward = ('data.train=it\'s a "b" $HOME `id` $(id) \\ ;&|<>', "data.glob=**/*.py", "x={y: [1, 2]}", "z=")
    asked = job(recipe="my recipe.yaml", overrides=awkward, tiny=True, deepspeed_config="d s.json", init_from="a b")
    script = rendered(asked)
    train = str(REPOSITORY / "pretrain" / "train.py")
    assert words_of(script) == [
        *("/venv/bin/python", "-u", train, "--recipe", "my recipe.yaml", "--tiny"),
        *("--deepspeed_config", "d s.json", "--init-from", "a b", "--resume", "auto", *awkward),
    ]


def test_log_folder_is_quoted_for_sbatch():
    output = next(line for line in directives(rendered(job(), Path('/a b/"c"/50%'))) if line.startswith("--output"))
    assert output == r'--output="/a b/\"c\"/50%%/slurm/%j.out"'
    with pytest.raises(UserError, match="control character"):
        rendered(job(), Path("/a\nb"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("2:00:01", 7201),
        ("1-12", 36 * 3600),
        ("1-12:30", 36.5 * 3600),
        ("1-00:00:05", 86405),
    ],
)
def test_time_limits(text, seconds):
    assert limit_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "1h", "1:2:3:4", "-5", "1-", "infinite"])
def test_wrong_time_limits(text):
    with pytest.raises(UserError, match="--time"):
        limit_seconds(text)


def test_secrets_and_this_shells_place_stay_here():
    environ = {
        "PATH": "/bin",
        "SLURM_CONF": "/etc/slurm.conf",
        "TOKENIZERS_PARALLELISM": "false",
        "NCCL_DEBUG": "INFO",
        "SBATCH_QOS": "long",
    }
    secrets = {"HF_TOKEN": "x", "WANDB_API_KEY": "x", "AWS_SECRET_ACCESS_KEY": "x", "DB_PASSWORD": "x"}
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}
    place |= {"OMPI_COMM_WORLD_RANK": "1", "PMI_SIZE": "2", "PMIX_NAMESPACE": "7", "TORCHELASTIC_RUN_ID": "x"}
    assert submission_environment({**environ, **secrets, **place}) == (environ, sorted(secrets))


def test_dry_run_prints_the_script_and_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]):
    before = sorted(here.rglob("*"))
    assert call("--dry-run", "--tasks-per-node", "2", "train.max_steps=9") == 0
    printed = capsys.readouterr().out
    assert directives(printed)[:3] == ["--job-name=small", "--nodes=2", "--ntasks-per-node=2"]
    assert f"--output={here}/runs/small/slurm/%j.out" in printed
    assert shlex.quote("train.max_steps=9") in printed
    assert sorted(here.rglob("*")) == before


def test_submission_writes_the_script_and_says_how_to_watch(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    fake_sbatch(here, f'echo "$@" > {here}/called; /usr/bin/env > {here}/environ; echo "4711;cluster"')
    monkeypatch.setenv("HF_TOKEN", "hf_hidden")
    assert call("run.dir=out") == 0
    script = here / "out" / "slurm" / "train.sbatch"
    assert (here / "called").read_text().split() == ["--parsable", str(script)]
    assert "hf_hidden" not in (here / "environ").read_text() + script.read_text()
    assert directives(script.read_text())[0] == "--job-name=small"
    printed = capsys.readouterr().out
    assert "job 4711: small on 2 x 1 processes, at most 10" in printed
    assert "not passed on to the job: HF_TOKEN" in printed
    assert f"tail -F {here}/out/slurm/4711.out" in printed


def test_weights_to_start_from_are_checked_and_passed_on(here: Path, capsys: pytest.CaptureFixture[str]):
    (here / "weights").mkdir()
    assert call("--dry-run", "--init-from", "weights") == 2
    assert "weights: neither a checkpoint nor a run with one" in capsys.readouterr().err

    write_checkpoint(here / "weights" / "checkpoints" / "step_00000007")
    assert call("--dry-run", "--init-from", "weights") == 0
    words = words_of(capsys.readouterr().out)
    assert words[words.index("--init-from") + 1] == "weights"


def test_the_same_submission_again_needs_the_weights_no_more(here: Path, capsys: pytest.CaptureFixture[str]):
    write_checkpoint(here / "runs" / "small" / "checkpoints" / "step_00000003")
    assert call("--dry-run", "--init-from", "gone") == 0  # the trainer resumes
    assert "--init-from gone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nodes": "3"}, "parallel.pipeline_stages"),
        ({"time": "2"}, "--time 2 is too short"),
        ({"time": "soon"}, "--time 'soon'"),
        ({"gpus": "2", "more": ["--tasks-per-node", "1"]}, "--tasks-per-node 1"),
        ({"more": ["train.max_stepz=9"]}, "train.max_steps"),
        ({"more": ["nonsense"]}, "'nonsense'"),
        ({"more": ["train.precision=fp16"]}, "fp16"),
        ({"more": ["--deepspeed_config", "absent.json"]}, "absent.json"),
        ({"more": ["--tiny"]}, "tiny"),
        ({}, "sbatch not found"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(here: Path, capsys: pytest.CaptureFixture[str], arguments, message):
    more = arguments.pop("more", [])
    assert call(*more, **arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert message in printed.err


def test_what_sbatch_refuses_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]):
    fake_sbatch(here, "echo 'sbatch: error: invalid partition specified: x' >&2; echo 'sbatch: failed' >&2; exit 1")
    assert call() == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "invalid partition specified: x" in printed


def test_tool_has_help_with_an_example_and_a_version():
    tool = str(REPOSITORY / "tools" / "submit.py")
    printed = subprocess.run([sys.executable, tool, "--help"], capture_output=True, text=True, check=True).stdout
    assert "example:" in printed
    assert "tools/submit.py --recipe" in printed
