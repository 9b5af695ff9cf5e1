"""Reproduce a figure of a paper from real trainings on this machine: runs, figure, table, and a verdict in words."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pretrain.analysis.reproduce_deepnet import DEPTHS, STEPS, Study
from pretrain.analysis.reproduce_page import write_study
from pretrain.command_line import Parser, positive, run
from pretrain.errors import EXIT_CRASHED, EXIT_DONE

EXAMPLES = """examples:
  python tools/reproduce.py deepnet_update
  python tools/reproduce.py deepnet_update --depths 6,12,24 --steps 50 -o runs/small_study
  python tools/reproduce.py deepnet_update -o runs/rate_study optimizer.lr=2e-3

deepnet_update trains encoder-decoders of 6+6 to 100+100 layers of width 64, DeepNorm and Post-LN, each with and without
warm-up, and draws how far training moves the model as a function: arXiv 2203.00555, section 3. The same command goes
on where it was interrupted; what is finished is not trained again.
"""


def depths(text: str) -> list[int]:
    return sorted({positive(part) for part in text.split(",")})


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(version=True, prog="tools/reproduce.py", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("figure", choices=["deepnet_update"], help="what to reproduce")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="default: runs/FIGURE")
    parser.add_argument(
        "--depths",
        type=depths,
        default=list(DEPTHS),
        metavar="D,D",
        help=f"layers of each stack; default: {','.join(map(str, DEPTHS))}",
    )
    parser.add_argument(
        "--steps", type=positive, default=STEPS, metavar="N", help="optimizer steps of each run; default: %(default)s"
    )
    parser.add_argument(
        "--processes",
        type=positive,
        default=min(2, len(os.sched_getaffinity(0))),
        metavar="N",
        help="trainings at a time, which share the cores; default: %(default)s",
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="changes to all runs")
    options = parser.parse_intermixed_args(argv)
    options.output = options.output or Path("runs") / options.figure
    return options


def reproduce(options: argparse.Namespace) -> int:
    study = Study(options.output, options.depths, options.steps, options.overrides)
    failed = study.train(options.processes, lambda line: print(line, flush=True))
    for verdict in write_study(study):
        print(f"\n{verdict.claim} {verdict.result.capitalize()}.\n{verdict.words}")
    print(f"\n{options.output / 'index.html'}")
    for failure in failed:
        print(f"error: {failure.title} failed, see {failure.folder}.log", file=sys.stderr)
    return EXIT_CRASHED if failed else EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    options = parse(argv)
    return run(lambda: reproduce(options))


if __name__ == "__main__":
    sys.exit(main())
