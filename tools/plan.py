"""Plan a training run before paying for it: parameters, FLOPs, memory, communication, and the layout to choose.

No GPU is needed and no weights are built.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pretrain import build
from pretrain.analysis.bench_machine import machine
from pretrain.analysis.bench_sides import Work
from pretrain.analysis.plan import model_lines
from pretrain.analysis.plan_check import Resident, check_text, measured_memory
from pretrain.analysis.plan_layout import Planner
from pretrain.analysis.plan_memory import GIB, Memory, stage_memory
from pretrain.analysis.plan_model import Sizes, forward_flops_per_token, parameters_by_part, training_flops_per_token
from pretrain.analysis.plan_speed import LayerTimes, measured_times, stacks, times_of_flops, times_of_seconds
from pretrain.analysis.plan_table import remarks, table
from pretrain.analysis.plan_traffic import Links
from pretrain.command_line import Parser, positive, run
from pretrain.config.load import load_experiment
from pretrain.config.schema import Experiment
from pretrain.data.outlook import outlook
from pretrain.errors import EXIT_CRASHED, EXIT_DONE, EXIT_WRONG_INPUT, UserError
from pretrain.launch.environment import rank_environment
from pretrain.models.layers import ModelSpec
from pretrain.parallel.build import stage_table

EXAMPLES = """examples:
  python tools/plan.py --recipe deepnet_1000l
  python tools/plan.py --recipe deepnet_1000l --gpus 64 --gpu-memory 40 --layer-tflops 90 --bandwidth 25
  python tools/plan.py --recipe deepnet_1000l --gpus 8 --measure -o plan.json
  python tools/plan.py --recipe demo --gpus 2 batch.global_batch_size=64
  python tools/plan.py --recipe deepnet_18l --check-memory parallel.pipeline_stages=1
"""
DEFAULT_GPUS = (8, 64, 1024)


def number(text: str) -> float:
    """A finite number above zero, as an argument's type."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def numbers(text: str) -> list[float]:
    return [number(part) for part in text.split(",")]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(version=True, prog="tools/plan.py", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--recipe", required=True, metavar="NAME|FILE", help="what to train")
    parser.add_argument("--tiny", action="store_true", help="the recipe's own small sizes")
    parser.add_argument("--gpus", type=positive, metavar="N", help="how many; default: a table each for 8, 64 and 1024")
    parser.add_argument("--gpu-memory", type=number, default=80.0, metavar="GIB", help="of each; default: %(default)g")
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument("--measure", action="store_true", help="tokens/s of GPUs as fast as this machine")
    speed.add_argument("--layer-tflops", type=number, metavar="X", help="tokens/s of GPUs that reach X TFLOP/s")
    speed.add_argument(
        "--layer-seconds",
        type=numbers,
        metavar="S[,S]",
        help="tokens/s of GPUs on which a layer's forward and backward of batch.micro_batch_size samples take S "
        "seconds; encoder, decoder",
    )
    parser.add_argument("--bandwidth", type=number, metavar="GB/S", help="that a GPU sends to others, also in tokens/s")
    parser.add_argument(
        "--check-memory",
        action="store_true",
        help="train in one process here: its memory against the estimate",
    )
    parser.add_argument(
        "--steps", type=positive, default=3, metavar="N", help="of --check-memory; default: %(default)s"
    )
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)  # this process trains; where it leaves figures
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json", help="write the figures as well")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="changes to the recipe")
    return parser.parse_intermixed_args(arguments)


def layer_times(options: argparse.Namespace, experiment: Experiment, spec: ModelSpec, sizes: Sizes) -> LayerTimes:
    """As the command line says."""
    if options.measure:
        build.use_threads(experiment, rank_environment({}))
        return measured_times(experiment, sizes)
    if options.layer_seconds:
        names = list(stacks(spec))
        if len(options.layer_seconds) != len(names):
            given = ",".join(f"{value:g}" for value in options.layer_seconds)
            raise UserError(f"--layer-seconds {given}: the model has {' and '.join(names)} layers; give one time each")
        times = dict(zip(names, options.layer_seconds, strict=True))
        return times_of_seconds(spec, times, experiment.batch.micro_batch_size)
    return times_of_flops(spec, options.layer_tflops and options.layer_tflops * 1e12)


def check_memory(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Train in a process of its own, which has nothing else in it."""
    with tempfile.TemporaryDirectory(prefix="kilolayer-plan-") as folder:
        figures = Path(folder) / "figures.json"
        command = [sys.executable, __file__, *arguments, "--worker", str(figures)]
        code = subprocess.run(command, env=os.environ | {"DS_ACCELERATOR": "cpu"}, check=False).returncode
        if code != EXIT_DONE:
            if code != EXIT_WRONG_INPUT:  # of which it has spoken itself
                print(f"error: the training process ended early (exit code {code})", file=sys.stderr)
            return code if code > 0 else EXIT_CRASHED
        document = json.loads(figures.read_text())
    if options.output:
        options.output.write_text(json.dumps(document, indent=1) + "\n")
    print(check_text(Memory(**document["estimated"]), Resident(**document["measured"])))
    return EXIT_DONE


def train_and_measure(options: argparse.Namespace) -> None:
    """What the training process does."""
    overrides = [*options.overrides, f"run.dir={options.worker.parent}/run"]
    experiment = load_experiment(options.recipe, overrides, tiny=options.tiny)
    environment = rank_environment({})
    build.use_threads(experiment, environment)
    ready = build.plan(experiment, build.Request(), environment, quiet=False)
    _, sizes = build.model_spec(experiment, ready.data.tokenizer.vocab_size, ready.data.objective)
    (row,) = stage_table(experiment, ready.spec)
    estimate = stage_memory(experiment, ready.spec, ready.batch, row, sizes)
    train, special = ready.data.train, ready.data.tokenizer.special
    work = Work(experiment, ready.batch, ready.spec, ready.deepspeed, train, ready.tokens_per_sample, special)
    resident = measured_memory(work, environment, options.worker.parent / "log", options.steps)
    document = {"estimated": asdict(estimate), "measured": resident._asdict(), "machine": machine()}
    options.worker.write_text(json.dumps(document))


def plan(options: argparse.Namespace) -> None:
    experiment = load_experiment(options.recipe, options.overrides, tiny=options.tiny)
    data = outlook(experiment)
    spec, sizes = build.model_spec(experiment, data.vocab_size, data.objective)
    times = layer_times(options, experiment, spec, sizes)
    rate = options.bandwidth and options.bandwidth * 1e9
    planner = Planner(experiment, spec, sizes, times, Links(rate, rate, stated=True) if rate else Links())
    memory = options.gpu_memory * GIB
    counts = [options.gpus] if options.gpus else DEFAULT_GPUS
    plans = {gpus: planner.options(gpus, memory) for gpus in counts}
    if options.output:
        document = {
            "recipe": options.recipe,
            "overrides": options.overrides,
            "parameters": parameters_by_part(spec),
            "flops_per_token": {
                "forward": forward_flops_per_token(spec, sizes),
                "training": training_flops_per_token(spec, sizes),
            },
            "tokens_per_sample": sizes.tokens,
            "layer_times": {"source": times.source, "words": times.words},
            "plans": [planner.document(gpus, memory, found) for gpus, found in plans.items()],
        }
        options.output.write_text(json.dumps(document, indent=1) + "\n")
    tables = [table(planner, gpus, memory, found) for gpus, found in plans.items()]
    print("\n\n".join([f"{experiment.name}\n" + "\n".join(model_lines(spec, sizes)), *tables, remarks(planner)]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(arguments)
    if options.worker is not None:
        return run(lambda: train_and_measure(options))
    return run(lambda: check_memory(options, arguments) if options.check_memory else plan(options))


if __name__ == "__main__":
    sys.exit(main())
