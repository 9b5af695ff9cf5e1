"""The batch script of a run: slurm/train.sbatch filled in."""

from __future__ import annotations

import re
import shlex
import string
from dataclasses import dataclass
from pathlib import Path

import pretrain
from pretrain.errors import UserError

REPOSITORY = Path(pretrain.__file__).resolve().parents[1]


@dataclass(frozen=True)
class Job:
    """What is asked of SLURM for one run."""

    recipe: str
    overrides: tuple[str, ...]
    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    time: str
    """Time limit in SLURM's own notation."""
    tiny: bool = False
    deepspeed_config: str | None = None
    init_from: str | None = None
    """A checkpoint whose weights the run starts from; without effect once the run has checkpoints of its own."""
    cpus_per_task: int | None = None
    partition: str | None = None
    account: str | None = None
    max_restarts: int = 20
    """How often the job may go back into the queue; 0: never."""
    save_seconds: int = 90
    """How long before the time limit the run is told to save."""

    @property
    def world_size(self) -> int:
        return self.nodes * self.tasks_per_node


class _Template(string.Template):
    delimiter = "%"  # `$` is the shell's
    braceidpattern = r"[a-z_]+"
    idpattern = r"(?!)"  # only %{name}


def render(job: Job, name: str, run_dir: Path, folder: Path, python: str, repository: Path = REPOSITORY) -> str:
    """The batch script of a job.

    Args:
        name: name of the experiment.
        run_dir: absolute folder of the run; SLURM writes its log to run_dir/slurm/JOBID.out.
        folder: where the job runs, so that relative paths mean what they mean to the user now.
        python: absolute path of the interpreter, the same on every node.
        repository: checkout that holds slurm/train.sbatch and pretrain/train.py.

    Raises:
        UserError: the template is not there, or a path cannot stand in a batch script.
    """
    template = repository / "slurm" / "train.sbatch"
    if not template.is_file():
        raise UserError(f"{template} not found: run tools/submit.py of a checkout (pip install -e .)")
    log_folder = str(run_dir / "slurm").replace("%", "%%")  # sbatch expands %
    return _Template(template.read_text(encoding="utf-8")).substitute(
        name=name,
        nodes=job.nodes,
        tasks_per_node=job.tasks_per_node,
        time=job.time,
        options="\n".join(f"#SBATCH {option}" for option in _options(job)),
        folder=_directive(str(folder)),
        log=_directive(f"{log_folder}/%j.out"),
        signal=f"TERM@{job.save_seconds}",
        max_restarts=job.max_restarts,
        command=shlex.join(_command(job, python, repository)),
        again=shlex.join([python, "-P", "-m", "pretrain.launch.again", str(run_dir)]),
        srun_options=f"--cpus-per-task={job.cpus_per_task} " if job.cpus_per_task else "",
    )


def _options(job: Job) -> list[str]:
    """The directives that stand in the script only when they are asked for."""
    values = {
        "--gpus-per-node": job.gpus_per_node,
        "--cpus-per-task": job.cpus_per_task,
        "--partition": job.partition,
        "--account": job.account,
    }
    options = ["--requeue" if job.max_restarts else "--no-requeue"]
    return options + [f"{option}={_directive(str(value))}" for option, value in values.items() if value]


def _command(job: Job, python: str, repository: Path) -> list[str]:
    command = [python, "-u", str(repository / "pretrain" / "train.py"), "--recipe", job.recipe]
    command += ["--tiny"] if job.tiny else []
    command += ["--deepspeed_config", job.deepspeed_config] if job.deepspeed_config else []
    command += ["--init-from", job.init_from] if job.init_from else []
    return [*command, "--resume", "auto", *job.overrides]


def _directive(value: str) -> str:
    """A value of an #SBATCH line. sbatch is no shell: it knows double quotes and backslashes, and ends at a newline."""
    if any(ord(character) < 32 for character in value):
        raise UserError(f"{value!r} has a control character, which no #SBATCH line can hold: use another path")
    if re.fullmatch(r"[\w@%+=:,./-]+", value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def limit_seconds(time: str) -> int:
    """Seconds of a SLURM time limit: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Raises:
        UserError: it is none of these.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if match is None:
        raise UserError(f"--time {time!r} is no SLURM time limit: write minutes, HH:MM:SS or D-HH:MM:SS")
    days, first, second, third = (int(part or 0) for part in match.groups())
    if match[1] is not None or match[4] is not None:
        return days * 86400 + first * 3600 + second * 60 + third
    return first * 60 + second
