"""Hands a run to SLURM: checks the experiment, writes its batch script, calls sbatch."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path

from pretrain.command_line import Parser, natural, positive, run
from pretrain.config.checks import check
from pretrain.config.deepspeed import deepspeed_config, load_deepspeed_json
from pretrain.config.load import load_experiment
from pretrain.errors import UserError
from pretrain.launch.environment import INNER, REQUIRED
from pretrain.launch.mpi import MPICH, OPEN_MPI
from pretrain.launch.script import Job, limit_seconds, render
from pretrain.state.reader import Checkpoint, has_checkpoint, resolve_checkpoint

EXAMPLE = """example:
  python tools/submit.py --recipe demo --nodes 2 --gpus-per-node 8 --time 12:00:00 batch.global_batch_size=64

A job that is told to stop (time limit, preemption) saves, is put back into the queue and goes on by itself; so does
one that hung or lost a rank, as long as restarts bring newer checkpoints.
--dry-run prints the script, to be kept, edited and given to sbatch by hand."""
LAUNCHER_VARIABLES = {*REQUIRED, "LOCAL_WORLD_SIZE", "LOCAL_SIZE", *INNER, *astuple(OPEN_MPI), *astuple(MPICH)}
SECRET = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY)(_|$)", re.IGNORECASE
)


def submission_environment(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The variables a job inherits, and the names of those kept back because they look like secrets.

    SLURM stores a job's environment on the controller's disk. Variables that describe the place of this shell (a
    launcher's or an allocation's) are left out too: they would be taken for the job's own.
    """
    secrets = sorted(name for name in environ if SECRET.search(name))
    place = [name for name in environ if name in LAUNCHER_VARIABLES or name.startswith("SLURM_")]
    left_out = {*secrets, *place} - {"SLURM_CONF"}
    return {name: value for name, value in environ.items() if name not in left_out}, secrets


def call_sbatch(script: Path, environ: Mapping[str, str]) -> str:
    """Submit a script and return the job's id.

    Raises:
        UserError: sbatch is not installed, or it refused the job.
    """
    if shutil.which("sbatch", path=environ.get("PATH")) is None:
        raise UserError("sbatch not found: submit from a login node of the cluster, or see the script with --dry-run")
    answer = subprocess.run(
        ["sbatch", "--parsable", str(script)], env=dict(environ), capture_output=True, text=True, check=False
    )
    if answer.returncode != 0:
        raise UserError(f"sbatch refused {script}: {' '.join(answer.stderr.split())}")
    return answer.stdout.strip().split(";")[0]  # JOB or JOB;CLUSTER


def submit(job: Job, environ: Mapping[str, str], dry_run: bool = False, say: Callable[[str], None] = print) -> None:
    """Check the experiment of a job, write its script to RUN/slurm/ and submit it; with dry_run only say the script.

    Raises:
        UserError: the experiment or the job is wrong, or SLURM does not take it.
    """
    if limit_seconds(job.time) < 2 * job.save_seconds:
        raise UserError(
            f"--time {job.time} is too short: the run is told to save {job.save_seconds} s before the end, "
            f"ask for at least {2 * job.save_seconds} s or lower --save-seconds"
        )
    experiment = load_experiment(job.recipe, list(job.overrides), tiny=job.tiny)
    plan = check(experiment, job.world_size, "cuda" if job.gpus_per_node else "cpu")
    if job.deepspeed_config:
        deepspeed_config(experiment, plan, load_deepspeed_json(job.deepspeed_config))
    run_dir = Path(experiment.run_dir).expanduser().absolute()
    if job.init_from and not has_checkpoint(run_dir / "checkpoints"):
        Checkpoint(resolve_checkpoint(Path(job.init_from)), verify="sizes")
    script = render(job, experiment.name, run_dir, Path.cwd(), sys.executable)
    if dry_run:
        say(script.rstrip("\n"))
        return
    path = run_dir / "slurm" / "train.sbatch"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script, encoding="utf-8")
    inherited, secrets = submission_environment(environ)
    number = call_sbatch(path, inherited)
    say(f"job {number}: {experiment.name} on {job.nodes} x {job.tasks_per_node} processes, at most {job.time}")
    if secrets:
        say(f"  not passed on to the job: {', '.join(secrets)}")
    say(f"  script  {path}")
    say(f"  state   squeue --jobs {number}")
    say(f"  watch   tail -F {shlex.quote(str(run_dir / 'slurm' / number))}.out")
    say(f"  stop    scancel {number}")


def _parser() -> Parser:
    parser = Parser(version=True, prog="tools/submit.py", description="Submit a training run to SLURM.", epilog=EXAMPLE)
    add = parser.add_argument
    add("--recipe", required=True, metavar="NAME|FILE", help="recipe, as for pretrain/train.py")
    add("--nodes", required=True, type=positive, metavar="N", help="machines")
    add("--gpus-per-node", required=True, type=natural, metavar="G", help="GPUs and processes a node; 0: CPU")
    add("--time", required=True, metavar="T", help="time limit: minutes, HH:MM:SS or D-HH:MM:SS")
    add("--tasks-per-node", type=positive, metavar="K", help="processes a node on CPU (default 1)")
    add("--cpus-per-task", type=positive, metavar="C", help="cores of each process (default: the cluster's)")
    add("--partition", metavar="P", help="partition (default: the cluster's)")
    add("--account", metavar="A", help="account to charge")
    add("--max-restarts", type=natural, default=Job.max_restarts, metavar="R", help="requeue at most R times")
    add("--save-seconds", type=positive, default=Job.save_seconds, metavar="S", help="stop S s before the limit")
    add("--deepspeed_config", metavar="FILE", help="DeepSpeed JSON, as for pretrain/train.py")
    add("--init-from", metavar="CKPT", help="start from these weights, as for pretrain/train.py")
    add("--tiny", action="store_true", help="the recipe's own small sizes")
    add("--dry-run", action="store_true", help="check the experiment and print the script; submit nothing")
    add("overrides", nargs="*", metavar="key.path=value", help="changes to the recipe")
    return parser


def job_of(arguments: argparse.Namespace) -> Job:
    """The job that a parsed command line asks for.

    Raises:
        UserError: processes and GPUs a node contradict each other.
    """
    gpus, tasks = arguments.gpus_per_node, arguments.tasks_per_node
    if gpus and tasks not in (None, gpus):
        raise UserError(
            f"--tasks-per-node {tasks} with --gpus-per-node {gpus}: one process drives one GPU, leave it out"
        )
    fields = {key: value for key, value in vars(arguments).items() if key not in ("dry_run", "overrides")}
    return Job(**{**fields, "tasks_per_node": gpus or tasks or 1, "overrides": tuple(arguments.overrides)})


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of tools/submit.py; returns its exit code."""
    arguments = _parser().parse_intermixed_args(argv)
    return run(lambda: submit(job_of(arguments), os.environ, dry_run=arguments.dry_run))
