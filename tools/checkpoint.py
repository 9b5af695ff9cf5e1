"""Look after checkpoints: list, verify, look inside, remove; to and from the universal format of DeepSpeed."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from pretrain.checkpoint.inspection import choose, figures
from pretrain.checkpoint.survey import Row, prune_run, survey, verify
from pretrain.checkpoint.universal import to_deepspeed
from pretrain.checkpoint.universal_import import from_deepspeed
from pretrain.checkpoint.universal_names import NAMINGS, PLAIN_ENGINE, PREFIX
from pretrain.command_line import Parser, natural, positive, run
from pretrain.config.load import load_experiment
from pretrain.errors import EXIT_CRASHED, EXIT_DONE, ConfigError
from pretrain.state.keep import Keep
from pretrain.state.reader import Checkpoint, resolve_checkpoint

EXAMPLES = """examples:
  python tools/checkpoint.py list runs/demo
  python tools/checkpoint.py verify runs/demo
  python tools/checkpoint.py inspect runs/demo --layer decoder.layers.12
  python tools/checkpoint.py inspect runs/demo/checkpoints/step_00000300 --parameter decoder.layers.12.ffn.fc1.weight
  python tools/checkpoint.py prune runs/demo --keep-last 2 --keep-every 100 --dry-run
  python tools/checkpoint.py to-deepspeed runs/demo universal
  python tools/checkpoint.py from-deepspeed universal runs/next/checkpoints/step_00000300 --recipe demo
"""


def add_list(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser("list", help="every checkpoint: step, time, size, layout, why it is kept, damage")
    parser.add_argument("run_folder", type=Path, metavar="RUN")
    parser.set_defaults(run=run_list)


def add_verify(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser("verify", help="compare every file with its hash; exit code 1 if one is damaged")
    parser.add_argument("source", type=Path, metavar="RUN|CHECKPOINT", help="a run means all its checkpoints")
    parser.set_defaults(run=run_verify)


def add_inspect(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser("inspect", help="parameters and shapes; figures of those that are named")
    parser.add_argument("source", type=Path, metavar="RUN|CHECKPOINT", help="a run means its newest checkpoint")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--layer", metavar="NAME", help="figures of a layer, or of all below a dotted prefix")
    which.add_argument("--parameter", metavar="NAME", help="figures of one parameter")
    which.add_argument("--all", action="store_true", help="figures of all parameters; reads the whole checkpoint")
    parser.set_defaults(run=run_inspect)


def add_prune(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser("prune", help="remove old checkpoints of a run that nobody writes to")
    parser.add_argument("run_folder", type=Path, metavar="RUN")
    parser.add_argument("--keep-last", type=positive, required=True, metavar="N", help="newest ones that stay")
    parser.add_argument(
        "--keep-every", type=natural, default=0, metavar="M", help="steps that are multiples of it stay; default: none"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    parser.set_defaults(run=run_prune)


def add_to_deepspeed(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser("to-deepspeed", help="checkpoint or run -> universal checkpoint of DeepSpeed")
    parser.add_argument("source", type=Path, metavar="CHECKPOINT|RUN", help="a run means its newest checkpoint")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make; engine.load_checkpoint(OUT) reads it")
    parser.add_argument(
        "--prefix",
        default=PLAIN_ENGINE,
        metavar="P",
        help="before each name: the path, dot at the end, of our LayerList in the module that DeepSpeed is given, or "
        "'' where it is that module; default: %(default)s",
    )
    parser.add_argument(
        "--names",
        choices=NAMINGS,
        default=PREFIX,
        help="stages: of our pipeline engine; indexed: INDEX.NAME, as DeepSpeed's PipelineModule; default: %(default)s",
    )
    parser.set_defaults(run=run_to_deepspeed)


def add_from_deepspeed(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "from-deepspeed",
        help="universal checkpoint of DeepSpeed -> checkpoint",
        epilog="key.path=value at the end changes keys of the recipe",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="it has zero/, or latest_universal")
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="checkpoint folder to make; RUN/checkpoints/step_NNNNNNNN to go on there"
    )
    parser.add_argument(
        "--recipe",
        "--config",
        metavar="NAME|FILE",
        help="what goes on from it: names and shapes are checked, its data is opened, the result can be resumed",
    )
    parser.add_argument("--tiny", action="store_true", help="the recipe's own small sizes")
    parser.add_argument("--prefix", metavar="P", help="what stands before our names; default: found out")
    parser.add_argument("--weights-only", action="store_true", help="leave out the moments")
    parser.add_argument("--step", type=natural, metavar="N", help="updates made, where the folder does not say")
    parser.set_defaults(run=run_from_deepspeed)


SUBCOMMANDS = {
    "list": add_list,
    "verify": add_verify,
    "inspect": add_inspect,
    "prune": add_prune,
    "to-deepspeed": add_to_deepspeed,
    "from-deepspeed": add_from_deepspeed,
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(version=True, prog="tools/checkpoint.py", description=__doc__, epilog=EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="|".join(SUBCOMMANDS))
    for add in SUBCOMMANDS.values():
        add(commands)
    options, rest = parser.parse_known_args(arguments)
    options.overrides = rest
    if options.overrides and (options.command != "from-deepspeed" or any("=" not in o for o in options.overrides)):
        parser.error(f"unrecognized arguments: {' '.join(options.overrides)}")
    return options


def run_list(options: argparse.Namespace) -> None:
    rows = survey(options.run_folder)
    if not rows:
        print(f"{options.run_folder}: no checkpoint yet")
        return
    head = ("checkpoint", "completed", "size", "layout", "kept as", "")
    table = [head, *((r.name, r.time, _size(r.bytes), r.layout, r.kept, r.problem) for r in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"{_total(rows)} in {len(rows)}")


def _total(rows: list[Row]) -> str:
    return _size(sum(row.bytes for row in rows))


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def run_verify(options: argparse.Namespace) -> int:
    whole = True
    for folder, problems in verify(options.source):
        if not problems:
            print(f"{folder}: whole", flush=True)
        for problem in problems:
            whole = False
            print(f"{folder}: {problem}", flush=True)
    return EXIT_DONE if whole else EXIT_CRASHED


def run_inspect(options: argparse.Namespace) -> None:
    checkpoint = Checkpoint(resolve_checkpoint(options.source), verify="sizes")
    names = choose(checkpoint, options.layer, options.parameter)
    weights = sum(math.prod(checkpoint.index.shape(name)) for name in names)
    print(f"{checkpoint.folder}: step {checkpoint.step}, {len(names):,} parameters, {weights:,} weights")
    width = max(len(name) for name in names)
    if not (options.layer or options.parameter or options.all):
        for name in names:
            print(f"{name:{width}}  {list(checkpoint.index.shape(name))}")
        return
    print(f"{'':{width}}  {'norm':>11}  {'mean':>11}  {'max |w|':>11}  norms of moments; shape")
    for row in figures(checkpoint, names):
        moments = "".join(f"{quantity} {norm:.4g}  " for quantity, norm in row.moments.items())
        print(
            f"{row.name:{width}}  {row.norm:11.4g}  {row.mean:11.3g}  {row.largest:11.4g}  {moments}{list(row.shape)}"
        )


def run_prune(options: argparse.Namespace) -> None:
    gone = prune_run(options.run_folder, Keep(options.keep_last, options.keep_every), options.dry_run)
    for folder in gone:
        print(f"{'would remove' if options.dry_run else 'removed'} {folder}")
    if not gone:
        print("nothing to remove")


def run_to_deepspeed(options: argparse.Namespace) -> None:
    done = to_deepspeed(options.source, options.out, options.names, options.prefix)
    moments = "weights, moments and step" if done.moments else "weights only (the checkpoint holds no moments)"
    print(
        f"{done.folder}: {moments} of step {done.step}, {done.parameters:,} parameters, {done.elements:,} weights, "
        f"{done.files:,} files"
    )


def run_from_deepspeed(options: argparse.Namespace) -> None:
    if (options.overrides or options.tiny) and options.recipe is None:
        raise ConfigError("--tiny and key.path=value go on top of a recipe; give --recipe")
    experiment = load_experiment(options.recipe, options.overrides, options.tiny) if options.recipe else None
    done = from_deepspeed(options.folder, options.out, experiment, options.prefix, options.weights_only, options.step)
    use = "resume or --init-from" if done.resumes else "--init-from"
    moments = "with moments" if done.moments else "weights only"
    print(
        f"{done.folder}: step {done.step}, {done.parameters:,} parameters, {done.elements:,} weights, {moments}; "
        f"for {use}"
    )
    for remark in done.remarks:
        print(f"  {remark}")


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    return run(lambda: options.run(options))


if __name__ == "__main__":
    sys.exit(main())
