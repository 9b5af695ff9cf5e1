"""Train an experiment.

deepspeed --num_gpus 2 pretrain/train.py --recipe demo
srun python pretrain/train.py --recipe deepnet_18l batch.global_batch_size=128
python pretrain/train.py --recipe demo parallel.pipeline_stages=1 --dry-run
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

if not __package__:  # run as a script: import from this clone, and let pretrain/'s folders hide no other package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pretrain.command_line import Parser, leave_with
from pretrain.command_line import run as run_command
from pretrain.errors import EXIT_DONE, EXIT_WRONG_INPUT
from pretrain.launch.environment import RankEnvironment, rank_environment, speaks
from pretrain.launch.parents import launcher_chain
from pretrain.launch.terminal import outlive_readers
from pretrain.resilience.watchdog import Watchdog

PATIENCE = 10.0
"""Seconds that a rank which must not speak waits before it ends on wrong input."""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; see docs/training.md."""
    parser = Parser(version=True, prog="pretrain/train.py", description=__doc__)
    parser.add_argument("--recipe", required=True, help="name of a recipe in pretrain/recipes, or a YAML file")
    parser.add_argument("--deepspeed_config", metavar="FILE", help="DeepSpeed JSON; say auto where the recipe decides")
    parser.add_argument("--resume", choices=("auto", "never", "must"), default="auto", help="default: auto")
    parser.add_argument("--init-from", metavar="CKPT", help="start from these weights: fresh optimizer, step 0")
    parser.add_argument("--tiny", action="store_true", help="apply the recipe's tiny section")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and end")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # DeepSpeed's launcher appends it
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="change keys of the recipe")
    return parser.parse_intermixed_args(argv)


def run(args: argparse.Namespace, environment: RankEnvironment) -> int:
    """Check, build, train; returns the exit code."""
    with contextlib.nullcontext() if args.dry_run else Watchdog(environment) as watchdog:
        return session(args, environment, watchdog)


def session(args: argparse.Namespace, environment: RankEnvironment, watchdog: Watchdog | None) -> int:
    """See `run`; the watchdog is None for a dry run."""
    launcher = launcher_chain(environment.launcher)

    from pretrain import build
    from pretrain.config.deepspeed import load_deepspeed_json
    from pretrain.config.load import load_experiment
    from pretrain.parallel import process_group

    first = environment.rank == 0
    experiment = load_experiment(args.recipe, args.overrides, tiny=args.tiny)
    deepspeed = load_deepspeed_json(args.deepspeed_config) if args.deepspeed_config else None
    build.use_threads(experiment, environment)
    request = build.Request(args.resume, args.init_from, deepspeed)
    if watchdog is None:
        text = build.dry_run(experiment, request, environment)
        if first:
            print(text)
        return EXIT_DONE
    process_group.check_place(environment)
    folder = build.RunFolder(Path(experiment.run_dir), writes=first)
    watchdog.guard(folder.path, experiment.watchdog)
    plan = build.plan(experiment, request, environment, quiet=not first, folder=folder)
    return build.train(plan, environment, launcher, folder, watchdog)


def check_own_place() -> None:
    """Raises UserError: the variables that say which rank this is are half set or contradict each other."""
    rank_environment(os.environ)


def main(argv: list[str] | None = None) -> int:
    """Parse, find this process's rank, run. Only rank 0 says what is wrong."""
    first = speaks(os.environ)
    with contextlib.nullcontext() if first else contextlib.redirect_stderr(io.StringIO()):
        args = arguments(argv)
    code = run_command(lambda: run(args, rank_environment(os.environ)), speaks=first)
    if code == EXIT_WRONG_INPUT and not first:
        time.sleep(PATIENCE)  # a launcher ends all ranks when one has ended: let rank 0 speak first
        # None has: perhaps there is no rank 0. What is wrong with this rank's own variables, it says itself.
        run_command(check_own_place)
    return code


def script(argv: list[str] | None = None) -> NoReturn:
    """`main` as a process of its own, which ends whatever happens, and whoever still listens."""
    outlive_readers()
    leave_with(lambda: main(argv))


if __name__ == "__main__":
    script()
