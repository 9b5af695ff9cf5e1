"""Write a run's report, or several runs compared, as one HTML file that opens without a network."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from pretrain import __version__
from pretrain.analysis.report import write_report
from pretrain.errors import EXIT_DONE, EXIT_WRONG_INPUT, UserError


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_WRONG_INPUT, f"{self.prog}: {message}; see --help\n")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__,
        epilog="examples:\n  python tools/report.py runs/demo\n"
        "  python tools/report.py runs/deepnorm runs/post_ln -o comparison.html",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder; several are compared")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="where to write; default, for one run: RUN/report.html"
    )
    parser.add_argument("--version", action="version", version=f"kilolayer {__version__}")
    options = parser.parse_args(arguments)
    if options.output is None and len(options.runs) > 1:
        parser.error("several runs need a file to write to: -o comparison.html")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    out = options.output or options.runs[0] / "report.html"
    try:
        write_report(options.runs, out)
    except UserError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return EXIT_WRONG_INPUT
    print(out)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
