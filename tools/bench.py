"""Time a recipe's optimizer step against the plain PyTorch loop over the same layers, step by step in turns."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain import build
from pretrain.analysis.bench import Options, Work, WorkDiffers, measure
from pretrain.analysis.bench_machine import machine
from pretrain.analysis.bench_plain import ADAMW
from pretrain.analysis.bench_report import text
from pretrain.command_line import Parser, positive, run
from pretrain.config.deepspeed import load_deepspeed_json
from pretrain.config.load import load_experiment
from pretrain.config.schema import Experiment
from pretrain.errors import EXIT_CRASHED, EXIT_DONE, EXIT_ORPHANED, ConfigError
from pretrain.launch.environment import LOOPBACK, RankEnvironment, export, rank_environment

EXAMPLES = """examples:
  python tools/bench.py --recipe demo --tiny
  python tools/bench.py --recipe deepnet_1000l_tiny parallel.pipeline_stages=1 batch.micro_batch_size=16
  python tools/bench.py --recipe deepnet_1000l_tiny --depths 12,48,500 --repeats 15 -o bench.json
"""


def depths(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(version=True, prog="tools/bench.py", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--recipe", required=True, metavar="NAME|FILE")
    parser.add_argument("--tiny", action="store_true", help="the recipe's own small sizes")
    parser.add_argument("--processes", type=positive, metavar="N", help="default: one a pipeline stage")
    parser.add_argument("--repeats", type=positive, default=9, metavar="N", help="timed pairs; default: %(default)s")
    parser.add_argument("--warmup", type=positive, default=2, metavar="N", help="untimed steps; default: %(default)s")
    parser.add_argument("--depths", type=depths, metavar="D,D", help="measure with D layers in each stack, one by one")
    parser.add_argument(
        "--plain-adamw", choices=ADAMW, default="default", help="the plain loop's torch.optim.AdamW; default: as torch"
    )
    parser.add_argument("--deepspeed_config", metavar="FILE", help="DeepSpeed JSON, as for training")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json", help="write the figures and the machine")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)  # this process is a rank; where rank 0 writes
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="changes to the recipe")
    return parser.parse_intermixed_args(argv)


def experiment_of(options: argparse.Namespace, folder: Path, depth: int | None) -> Experiment:
    """The recipe with its changes; its run folder is a new one, for logs alone."""
    overrides = [*options.overrides, f"run.dir={folder}"]
    if depth is not None:
        overrides += [f"model.encoder_layers={depth}", f"model.decoder_layers={depth}"]
    experiment = load_experiment(options.recipe, overrides, tiny=options.tiny)
    if experiment.train.precision == "fp16":
        raise ConfigError("train.precision = fp16 has no plain loop to compare with; set it to fp32 or bf16")
    return experiment


def work_of(experiment: Experiment, options: argparse.Namespace, environment: RankEnvironment, quiet: bool) -> Work:
    deepspeed = load_deepspeed_json(options.deepspeed_config) if options.deepspeed_config else None
    plan = build.plan(experiment, build.Request(deepspeed=deepspeed), environment, quiet)
    return Work(plan.experiment, plan.batch, plan.spec, plan.deepspeed, plan.data.train, plan.tokens_per_sample)


def end_with_parent() -> None:
    """End this process when the one that started it has died: its end of our standard input closes then."""

    def watch() -> None:
        os.read(0, 1)  # blocks: nothing is ever written there
        os._exit(EXIT_ORPHANED)

    threading.Thread(target=watch, daemon=True).start()


def run_rank(options: argparse.Namespace, environment: RankEnvironment) -> int:
    """What each started process does; rank 0 writes the figures."""
    end_with_parent()
    folder, depth = options.worker.parent, (options.depths or [None])[0]
    experiment = experiment_of(options, folder, depth)
    build.use_threads(experiment, environment)
    work = work_of(experiment, options, environment, quiet=True)
    log = folder / f"rank_{environment.rank}.log"
    try:
        figures = measure(work, environment, log, Options(options.repeats, options.warmup, options.plain_adamw))
    except WorkDiffers as error:
        if environment.rank == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        return EXIT_CRASHED
    if environment.rank == 0:
        options.worker.write_text(json.dumps(figures))
    return EXIT_DONE


def start_ranks(command: Sequence[str], count: int) -> int:
    """Run `command` as that many ranks; 0, or the first other exit code, after which the remaining ones are ended."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        port = listener.getsockname()[1]
    ranks = []
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
    """Check all, then measure one depth after the other, each in fresh processes."""
    described = machine()
    measurements: list[dict[str, Any]] = []
    chosen = options.depths or [None]
    with tempfile.TemporaryDirectory(prefix="kilolayer-bench-") as temporary:
        folder = Path(temporary)
        experiments = [experiment_of(options, folder, depth) for depth in chosen]
        count = options.processes or experiments[0].parallel.pipeline_stages
        for experiment in experiments:
            work_of(experiment, options, RankEnvironment(0, count, 0, count, LOOPBACK, 0, "single"), quiet=False)
        if options.output:
            options.output.parent.mkdir(parents=True, exist_ok=True)  # fail now, not after the measurement
        for depth in chosen:
            result = folder / "figures.json"
            result.unlink(missing_ok=True)
            one = [] if depth is None else ["--depths", str(depth)]
            code = start_ranks([sys.executable, __file__, *argv, *one, "--worker", str(result)], count)
            if code not in (EXIT_DONE, EXIT_CRASHED):  # after those it has spoken itself
                print(f"error: a process of the benchmark ended early ({exit_reason(code)})", file=sys.stderr)
            if code != EXIT_DONE:
                return EXIT_CRASHED
            measurements.append(json.loads(result.read_text()))
    if options.output:
        document = {"command": ["tools/bench.py", *argv], "machine": described, "measurements": measurements}
        options.output.write_text(json.dumps(document, indent=1) + "\n")
    print(text(described, measurements))
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    options = parse(argv)
    if options.worker is None:
        return run(lambda: bench(options, argv))
    environment = rank_environment(os.environ)
    return run(lambda: run_rank(options, environment), speaks=environment.rank == 0)


if __name__ == "__main__":
    sys.exit(main())
