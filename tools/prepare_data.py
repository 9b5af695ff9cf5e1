"""Build or look at tokenizer, tokens and samples: python tools/prepare_data.py --help"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Sequence

from pretrain.command_line import Parser, natural, run
from pretrain.config.checks import Machine, document_mask_has_meaning
from pretrain.config.load import load_experiment
from pretrain.config.schema import Experiment
from pretrain.data.describe import SPLITS, data_lines, sample_lines, tokenizer_lines
from pretrain.data.prepare import open_sources, open_tokenizer, prepare
from pretrain.errors import DataError

EXAMPLES = """examples:
  python tools/prepare_data.py tokenizer data.train=texts/ data.vocab_size=16000 --mask -o my.model
  python tools/prepare_data.py tokens --recipe demo data.train=texts.jsonl data.tokenizer=my.model
  python tools/prepare_data.py inspect --split validation --index 7 --count 2

Training builds by itself whatever is missing in run.cache; `tokens` does the same ahead of time."""


def tokenizer(arguments: argparse.Namespace, experiment: Experiment) -> None:
    """Train the tokenizer, or open the one that is there."""
    train, _ = open_sources(experiment)
    found = open_tokenizer(experiment, train, mask=arguments.mask)
    if arguments.output:
        try:
            shutil.copyfile(found.path, arguments.output)
        except OSError as error:
            raise DataError(f"--output: {arguments.output} cannot be written ({error.strerror})") from error
    print(*tokenizer_lines(found), sep="\n")


def tokens(arguments: argparse.Namespace, experiment: Experiment) -> None:
    """Build tokenizer and token files."""
    data = prepare(experiment)
    print(*tokenizer_lines(data.tokenizer), *data_lines(data), sep="\n")


def inspect(arguments: argparse.Namespace, experiment: Experiment) -> None:
    """Print samples as the model will see them."""
    data = prepare(experiment)
    for index in range(arguments.index, arguments.index + arguments.count):
        print(*sample_lines(data, arguments.split, index), sep="\n")


def load(arguments: argparse.Namespace) -> Experiment:
    """The experiment, with what concerns its data checked; the model may be of any family, nothing is trained."""
    experiment = load_experiment(arguments.recipe, arguments.overrides, tiny=arguments.tiny)
    document_mask_has_meaning(experiment, Machine(world_size=1, device="cpu"))
    return experiment


def parser() -> Parser:
    main_parser = Parser(
        prog="tools/prepare_data.py",
        description="Build or look at a recipe's tokenizer, tokens and samples.",
        epilog=EXAMPLES,
        version=True,
    )
    commands = main_parser.add_subparsers(dest="command", required=True)
    for command in (tokenizer, tokens, inspect):
        sub = commands.add_parser(
            command.__name__,
            help=command.__doc__,
            description=command.__doc__,
            epilog=EXAMPLES,
        )
        sub.set_defaults(run=command)
        sub.add_argument("--recipe", default="demo", metavar="NAME|FILE", help="recipe (default: demo)")
        sub.add_argument("--tiny", action="store_true", help="the recipe's own small sizes")
        sub.add_argument("overrides", nargs="*", metavar="key.path=value", help="changes to the recipe")
        if command is tokenizer:
            sub.add_argument("-o", "--output", metavar="FILE.model", help="copy the model to this file")
            sub.add_argument(
                "--mask",
                action="store_true",
                help="with a <mask> piece, as objectives that mask need it (those get one in any case)",
            )
        if command is inspect:
            sub.add_argument("--split", choices=SPLITS, default="train", help="which split (default: train)")
            sub.add_argument("--index", type=natural, default=0, metavar="I", help="first global sample index")
            sub.add_argument("--count", type=natural, default=1, metavar="N", help="samples to print (default: 1)")
    return main_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    logging.basicConfig(format="%(message)s")
    # What stands after an option, key.path=value too, is left over by the subparser.
    parsing = parser()
    arguments, rest = parsing.parse_known_args(argv)
    if unknown := [word for word in rest if word.startswith("-")]:
        parsing.error(f"unknown option {unknown[0]}")
    arguments.overrides += rest
    return run(lambda: arguments.run(arguments, load(arguments)))


if __name__ == "__main__":
    sys.exit(main())
