"""What the depth signals cost a step: sampled, unsampled and plain steps in turns, in one process of each rank."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import torch

from pretrain import build
from pretrain.analysis.bench_clock import RankClock
from pretrain.analysis.bench_machine import write_figures
from pretrain.analysis.bench_signals import kinds, measure_signals, signals_report, signals_text
from pretrain.command_line import Parser, leave_with, positive, run
from pretrain.config.load import load_experiment
from pretrain.errors import EXIT_DONE
from pretrain.launch.environment import RankEnvironment, rank_environment
from pretrain.parallel import collectives, process_group
from pretrain.training.run_folder import RunFolder

EXAMPLES = """examples:
  python tools/bench_signals.py --recipe deepnet_1000l_tiny parallel.pipeline_stages=1
  python tools/bench_signals.py --recipe demo parallel.pipeline_stages=1 --rounds 25 --each
  srun python tools/bench_signals.py --recipe deepnet_200l -o signals.json
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(version=True, prog="tools/bench_signals.py", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--recipe", required=True, metavar="NAME|FILE", help="whose steps to time")
    parser.add_argument("--tiny", action="store_true", help="the recipe's own small sizes")
    parser.add_argument("--rounds", type=positive, default=15, metavar="N", help="that count; default: %(default)s")
    parser.add_argument("--warmup", type=positive, default=2, metavar="N", help="before them; default: %(default)s")
    parser.add_argument("--each", action="store_true", help="also steps sampled by one kind of signal alone")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json", help="write the figures and the machine")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # DeepSpeed's launcher appends it
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="changes to the recipe")
    return parser.parse_intermixed_args(arguments)


def bench(options: argparse.Namespace, environment: RankEnvironment) -> int:
    """Build the recipe's engine on this rank, and take the steps in turns."""
    experiment = load_experiment(options.recipe, options.overrides, tiny=options.tiny)
    build.use_threads(experiment, environment)
    plan = build.plan(experiment, build.Request(), environment, quiet=environment.rank > 0)

    with tempfile.TemporaryDirectory(prefix="bench_signals_") as own:
        process_group.start(environment, Path(own) / f"rank_{environment.rank}.log")
        try:
            folder = RunFolder(Path(own), writes=collectives.is_first())
            session = build.trainer(plan, resumes=False, callbacks=[], folder=folder)
            chosen = kinds(session, lambda: build.probe(plan), options.each)
            clock = RankClock(torch.get_num_threads())
            spent = measure_signals(session, chosen, clock, options.rounds, options.warmup)
            report = signals_report(session, spent) | build.layout(plan)
            session.loader.close()
            collectives.barrier()
        finally:
            process_group.end()
    if environment.rank == 0:
        print(signals_text(report))
        if options.output:
            write_figures(options.output, report)
    return EXIT_DONE


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    environment = rank_environment(os.environ)
    return run(lambda: bench(options, environment), speaks=environment.rank == 0)


if __name__ == "__main__":
    leave_with(main)
