"""Time an optimizer step against the plain PyTorch loop or the Hugging Face Trainer, step by step in turns."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pretrain import build
from pretrain.analysis.bench import measure, rival_type
from pretrain.analysis.bench_machine import machine
from pretrain.analysis.bench_plain import ADAMW
from pretrain.analysis.bench_report import text
from pretrain.analysis.bench_sides import Options, Work, WorkDiffers
from pretrain.analysis.bench_suite import SUITES, cases
from pretrain.command_line import Parser, leave_with, positive, run
from pretrain.config.deepspeed import load_deepspeed_json
from pretrain.config.load import load_experiment
from pretrain.config.schema import Experiment
from pretrain.errors import EXIT_CRASHED, EXIT_DONE, EXIT_ORPHANED, ConfigError
from pretrain.launch.environment import LOOPBACK, RankEnvironment, export, free_port, rank_environment

EXAMPLES = """examples:
  python tools/bench.py --recipe demo --tiny
  python tools/bench.py --recipe deepnet_1000l_tiny parallel.pipeline_stages=1 batch.micro_batch_size=16
  python tools/bench.py --recipe deepnet_1000l_tiny --depths 12,48,500 --repeats 15 -o bench.json
  python tools/bench.py --recipe demo --against hf parallel.pipeline_stages=1 batch.micro_batch_size=16
  python tools/bench.py --recipe gpt_base parallel.pipeline_stages=2 train.threads=1 --rival-threads 1
  python tools/bench.py --suite families -o families.json
  python tools/bench.py --suite families --only 'decoder-*-fp32' --repeats 15
"""


def depths(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(version=True, prog="tools/bench.py", description=__doc__, epilog=EXAMPLES)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--recipe", metavar="NAME|FILE", help="what to train")
    what.add_argument("--suite", choices=SUITES, help="ready-made cases, one after the other, each against its bound")
    parser.add_argument("--only", metavar="CASE,CASE", help="of a suite: the cases that match; * stands for anything")
    parser.add_argument(
        "--against",
        choices=("plain", "hf"),
        help="plain: the PyTorch loop over the same layers (default with --recipe); "
        "hf: the Hugging Face Trainer over the native class of our export (default with --suite)",
    )
    parser.add_argument("--tiny", action="store_true", help="the recipe's own small sizes")
    parser.add_argument("--processes", type=positive, metavar="N", help="default: one a pipeline stage")
    parser.add_argument("--repeats", type=positive, default=9, metavar="N", help="timed pairs; default: %(default)s")
    parser.add_argument("--warmup", type=positive, default=2, metavar="N", help="untimed steps; default: %(default)s")
    parser.add_argument("--depths", type=depths, metavar="D,D", help="measure with D layers in each stack, one by one")
    parser.add_argument(
        "--plain-adamw", choices=ADAMW, default="default", help="the plain loop's torch.optim.AdamW; default: as torch"
    )
    parser.add_argument(
        "--rival-threads", type=positive, default=0, metavar="N", help="of the other side; default: as many in all"
    )
    parser.add_argument("--deepspeed_config", metavar="FILE", help="DeepSpeed JSON, as for training")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json", help="write the figures and the machine")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)  # this process is a rank; where rank 0 writes
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="changes to the recipe")
    options = parser.parse_intermixed_args(argv)
    if options.suite and options.depths:
        parser.error("argument --depths: a suite's cases state their own; leave it out, or give --recipe")
    if options.only and not options.suite:
        parser.error("argument --only: chooses cases of a suite; leave it out, or give --suite families")
    options.against = options.against or ("hf" if options.suite else "plain")
    return options


class Trial(NamedTuple):
    """One measurement to make."""

    recipe: str
    overrides: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    """By which the command line chooses this one alone."""
    bound: float | None = None


def trials(options: argparse.Namespace, folder: Path) -> list[Trial]:
    """What the command line asks for, in order; a suite's recipes are written to `folder`."""
    if options.suite:
        chosen = cases(options.suite, options.only)
        return [Trial(str(c.write(folder)), arguments=("--only", c.name), bound=c.bound) for c in chosen]
    if not options.depths:
        return [Trial(options.recipe)]
    return [
        Trial(options.recipe, _depth(options, depth), arguments=("--depths", str(depth))) for depth in options.depths
    ]


def _depth(options: argparse.Namespace, depth: int) -> tuple[str, ...]:
    """That many layers in each stack that the recipe's model has."""
    model = load_experiment(options.recipe, options.overrides, tiny=options.tiny).model
    stacks = {"encoder_layers": model.encoder_layers, "decoder_layers": model.decoder_layers}
    return tuple(f"model.{key}={depth}" for key, layers in stacks.items() if layers)


def experiment_of(trial: Trial, options: argparse.Namespace, folder: Path) -> Experiment:
    """The recipe with its changes; its run folder is a new one, for logs alone."""
    overrides = [*options.overrides, *trial.overrides, f"run.dir={folder}"]
    experiment = load_experiment(trial.recipe, overrides, tiny=options.tiny)
    if experiment.train.precision == "fp16":
        raise ConfigError("train.precision = fp16 has nothing to compare with; set it to fp32 or bf16")
    return experiment


def work_of(experiment: Experiment, options: argparse.Namespace, environment: RankEnvironment, quiet: bool) -> Work:
    deepspeed = load_deepspeed_json(options.deepspeed_config) if options.deepspeed_config else None
    plan = build.plan(experiment, build.Request(deepspeed=deepspeed), environment, quiet)
    train, special = plan.data.train, plan.data.tokenizer.special
    return Work(plan.experiment, plan.batch, plan.spec, plan.deepspeed, train, plan.tokens_per_sample, special)


def measure_options(options: argparse.Namespace) -> Options:
    return Options(options.repeats, options.warmup, options.against, options.plain_adamw, options.rival_threads)


def end_with_parent() -> None:
    """End this process when the one that started it has died: its end of our standard input closes then."""

    def watch() -> None:
        os.read(0, 1)  # blocks: nothing is ever written there
        os._exit(EXIT_ORPHANED)

    threading.Thread(target=watch, daemon=True).start()


def run_rank(options: argparse.Namespace, environment: RankEnvironment) -> int:
    """What each started process does; rank 0 writes the figures."""
    end_with_parent()
    folder = options.worker.parent
    (trial,) = trials(options, folder)
    experiment = experiment_of(trial, options, folder)
    build.use_threads(experiment, environment)
    work = work_of(experiment, options, environment, quiet=True)
    try:
        figures = measure(work, environment, folder / f"rank_{environment.rank}.log", measure_options(options))
    except WorkDiffers as error:
        if environment.rank == 0:
            print(f"error: {experiment.name}: {error}", file=sys.stderr, flush=True)
        return EXIT_CRASHED
    if environment.rank == 0:
        options.worker.write_text(json.dumps(figures))
    return EXIT_DONE


def start_ranks(command: Sequence[str], count: int) -> int:
    """Run `command` as that many ranks; 0, or the first other exit code, after which the remaining ones are ended."""
    ranks, port = [], free_port()
    try:
        for rank in range(count):
            place = RankEnvironment(rank, count, rank, count, LOOPBACK, port, "deepspeed")
            variables = os.environ | export(place)
            ranks.append(subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL))
        while True:
            codes = [process.poll() for process in ranks]
            if failed := [code for code in codes if code]:
                return failed[0]
            if None not in codes:
                return EXIT_DONE
            time.sleep(0.1)
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def exit_reason(code: int) -> str:
    return f"signal {-code}: {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"


def bench(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Check all, then measure one after the other, each in fresh processes."""
    described = machine()
    measurements: list[dict[str, Any]] = []
    failed = EXIT_DONE
    with tempfile.TemporaryDirectory(prefix="kilolayer-bench-") as temporary:
        folder = Path(temporary)
        chosen = trials(options, folder)
        experiments = [experiment_of(trial, options, folder) for trial in chosen]
        count = options.processes or experiments[0].parallel.pipeline_stages
        for experiment in experiments:
            check(experiment, options, RankEnvironment(0, count, 0, count, LOOPBACK, 0, "single"))
        if options.output:
            options.output.parent.mkdir(parents=True, exist_ok=True)  # fail now, not after the measurement
        for trial in chosen:
            result = folder / "figures.json"
            result.unlink(missing_ok=True)
            code = start_ranks([sys.executable, __file__, *argv, *trial.arguments, "--worker", str(result)], count)
            if code not in (EXIT_DONE, EXIT_CRASHED):  # after those it has spoken itself
                print(f"error: a process of the benchmark ended early ({exit_reason(code)})", file=sys.stderr)
            if code != EXIT_DONE:
                failed = EXIT_CRASHED
                continue
            measurements.append(json.loads(result.read_text()) | {"bound": trial.bound})
            if options.output:  # after each: a suite takes long
                document = {"command": ["tools/bench.py", *argv], "machine": described, "measurements": measurements}
                options.output.write_text(json.dumps(document, indent=1) + "\n")
    if measurements:
        print(text(described, measurements, suite=bool(options.suite)))
    return failed


def check(experiment: Experiment, options: argparse.Namespace, environment: RankEnvironment) -> None:
    """Raise a UserError where the measurement would."""
    rival_type(options.against).check(work_of(experiment, options, environment, quiet=False))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    options = parse(argv)
    if options.worker is None:
        return run(lambda: bench(options, argv))
    environment = rank_environment(os.environ)
    leave_with(lambda: run(lambda: run_rank(options, environment), speaks=environment.rank == 0))


if __name__ == "__main__":
    sys.exit(main())
