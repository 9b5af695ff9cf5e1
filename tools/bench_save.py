"""Time for which training stands still for a save: in the background against waiting for it, in turns."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import torch

from pretrain import build
from pretrain.analysis.bench_clock import RankClock
from pretrain.analysis.bench_machine import forget_peak, peak_resident_bytes, resident_bytes, write_figures
from pretrain.analysis.bench_save import Held, measure_saves, saves_report, saves_text, state_bytes
from pretrain.checkpoint.restore import fill_weights
from pretrain.command_line import Parser, leave_with, positive, run
from pretrain.config.load import load_experiment
from pretrain.errors import EXIT_DONE
from pretrain.launch.environment import RankEnvironment, rank_environment
from pretrain.parallel import collectives, process_group
from pretrain.state.reader import Checkpoint, list_checkpoints
from pretrain.training.run_folder import RunFolder

EXAMPLES = """examples:
  python tools/bench_save.py --recipe deepnet_1000l_tiny parallel.pipeline_stages=1
  python tools/bench_save.py --recipe demo parallel.pipeline_stages=1 --folder /scratch --pairs 15 --steps
  srun python tools/bench_save.py --recipe deepnet_200l --folder /shared/scratch -o saves.json
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(version=True, prog="tools/bench_save.py", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--recipe", required=True, metavar="NAME|FILE", help="whose state to save")
    parser.add_argument("--tiny", action="store_true", help="the recipe's own small sizes")
    parser.add_argument("--pairs", type=positive, default=9, metavar="N", help="that count; default: %(default)s")
    parser.add_argument("--steps", action="store_true", help="also time a step beside each save")
    parser.add_argument(
        "--folder", type=Path, default=Path(), metavar="DIR", help="on the disk to measure; default: here"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json", help="write the figures and the machine")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # DeepSpeed's launcher appends it
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="changes to the recipe")
    return parser.parse_intermixed_args(arguments)


def bench(options: argparse.Namespace, environment: RankEnvironment) -> int:
    """Build the recipe's engine on this rank, make one step, and save in turns."""
    experiment = load_experiment(options.recipe, options.overrides, tiny=options.tiny)
    build.use_threads(experiment, environment)
    plan = build.plan(experiment, build.Request(), environment, quiet=environment.rank > 0)
    with tempfile.TemporaryDirectory(prefix="bench_save_", dir=options.folder) as own:
        process_group.start(environment, Path(own) / f"rank_{environment.rank}.log")
        try:
            folder, before = Path(collectives.share_text(own)), resident_bytes()
            session = build.trainer(plan, resumes=False, callbacks=[], folder=RunFolder(folder, writes=False))

            def step() -> None:
                session.engine.train_step(session.loader.next() if session.engine.needs_data else [], 0.0)

            step()
            trained, known = resident_bytes() - before, forget_peak()
            clock = RankClock(torch.get_num_threads())
            taken = step if options.steps else None
            times = measure_saves(
                session.engine, session.state_dict, taken, folder / "checkpoints", clock, options.pairs
            )
            saving = peak_resident_bytes() - before
            forget_peak()
            (newest,) = list_checkpoints(folder / "checkpoints")
            fill_weights(session.engine, Checkpoint(newest, verify="nothing"), moments=True)
            held = Held(trained, saving, peak_resident_bytes() - before).largest() if known else None
            report = saves_report(times, state_bytes(session.engine), held)
            session.loader.close()
            collectives.barrier()  # rank 0's folder goes with it
        finally:
            process_group.end()
    if environment.rank == 0:
        print(saves_text(experiment.name, report))
        if options.output:
            write_figures(options.output, report)
    return EXIT_DONE


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    environment = rank_environment(os.environ)
    return run(lambda: bench(options, environment), speaks=environment.rank == 0)


if __name__ == "__main__":
    leave_with(main)
