"""Watch a run in the terminal while it trains: loss, a profile over depth, the worst verdict, throughput, events."""

from __future__ import annotations

import argparse
import sys

from pretrain.analysis.watch import watch
from pretrain.analysis.watch_view import Choice
from pretrain.command_line import Parser, run

EXAMPLES = """examples:
  python tools/watch.py runs/demo
  python tools/watch.py runs/demo --figure gradient_norm --part ffn
  python tools/watch.py login.cluster:/scratch/me/runs/demo
  python tools/watch.py runs/demo --once
"""
LEAST_SECONDS = 0.2


def interval(text: str) -> float:
    seconds = float(text)  # argparse turns the ValueError into its own line
    if not LEAST_SECONDS <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is below {LEAST_SECONDS} s or no time")
    return seconds


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(version=True, description=__doc__, epilog=EXAMPLES)
    parser.add_argument(
        "run", metavar="RUN", help="a run's folder, or HOST:FOLDER by ssh (which must work without a password)"
    )
    parser.add_argument(
        "--figure", default="", help="what to show over depth; default: what the worst verdict is about; key f: next"
    )
    parser.add_argument(
        "--part", default=None, help="part of the layers, such as ffn; '' for whole layers; key p: next"
    )
    parser.add_argument(
        "--interval", type=interval, default=2.0, metavar="SECONDS", help="between two looks at the files; default 2"
    )
    parser.add_argument("--once", action="store_true", help="one view, as always where the output is no terminal")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    once = options.once or not sys.stdout.isatty()
    choice = Choice(options.figure, options.part)
    return run(lambda: watch(options.run, choice, options.interval, once))


if __name__ == "__main__":
    sys.exit(main())
