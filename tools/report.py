"""Write a run's report, or several runs compared, as one HTML file that opens without a network."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pretrain.analysis.report import write_report
from pretrain.command_line import Parser, run


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        version=True,
        description=__doc__,
        epilog="examples:\n  python tools/report.py runs/demo\n"
        "  python tools/report.py runs/deepnorm runs/post_ln -o comparison.html",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder; several are compared")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="where to write; default, for one run: RUN/report.html"
    )
    options = parser.parse_args(arguments)
    if options.output is None and len(options.runs) > 1:
        parser.error("several runs need a file to write to: -o comparison.html")
    return options


def report(options: argparse.Namespace) -> None:
    out = options.output or options.runs[0] / "report.html"
    write_report(options.runs, out)
    print(out)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    return run(lambda: report(options))


if __name__ == "__main__":
    sys.exit(main())
