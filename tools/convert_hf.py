"""Convert between checkpoints and native Hugging Face folders, and verify the conversion."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pretrain.blocks.registry import BLOCKS
from pretrain.command_line import Parser, run
from pretrain.hf.export import DTYPES, export
from pretrain.hf.import_ import import_
from pretrain.hf.trained import TrainedModel
from pretrain.hf.validation import NotComputed, check_validation_loss
from pretrain.hf.verify import record, verify

EXAMPLES = """examples:
  python tools/convert_hf.py export runs/demo runs/demo/hf
  python tools/convert_hf.py export runs/demo/checkpoints/step_00000300 out --dtype bfloat16 --max-shard-size 2GB
  python tools/convert_hf.py verify runs/demo runs/demo/hf
  python tools/convert_hf.py import runs/demo/hf checkpoints/from_hf
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(version=True, description=__doc__, epilog=EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="export|import|verify")

    to_hf = commands.add_parser("export", help="checkpoint or run -> Hugging Face folder, verified")
    to_hf.add_argument("source", type=Path, metavar="CHECKPOINT|RUN", help="a run means its newest checkpoint")
    to_hf.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    to_hf.add_argument(
        "--dtype", choices=sorted(DTYPES), default="float32", help="of the weights; default: %(default)s"
    )
    to_hf.add_argument("--max-shard-size", default="5GB", metavar="S", help="of one file; default: %(default)s")
    to_hf.add_argument("--overwrite", action="store_true", help="replace an earlier export at OUT")
    to_hf.add_argument("--license", default="other", metavar="L", help="for the model card; default: %(default)s")
    to_hf.set_defaults(run=run_export)

    from_hf = commands.add_parser("import", help="Hugging Face folder -> checkpoint (weights only) for --init-from")
    from_hf.add_argument("folder", type=Path, metavar="HF_DIR")
    from_hf.add_argument("out", type=Path, metavar="OUT", help="checkpoint folder to make")
    from_hf.add_argument(
        "--block", choices=BLOCKS.kinds(), help="block to unfold to; default: what it was exported from, else plain"
    )
    from_hf.add_argument(
        "--source-length", type=int, metavar="N", help="positions to keep; default: all that there are"
    )
    from_hf.add_argument(
        "--target-length", type=int, metavar="N", help="positions to keep; default: all that there are"
    )
    from_hf.set_defaults(run=run_import)

    compare = commands.add_parser("verify", help="compare a folder with its checkpoint, and with the run's loss")
    compare.add_argument("source", type=Path, metavar="CHECKPOINT|RUN")
    compare.add_argument("folder", type=Path, metavar="HF_DIR")
    compare.set_defaults(run=run_verify)
    return parser.parse_args(arguments)


def run_export(options: argparse.Namespace) -> None:
    report = export(
        options.source,
        options.out,
        dtype=options.dtype,
        max_shard_size=options.max_shard_size,
        overwrite=options.overwrite,
        license_name=options.license,
    )
    print(f"{report.folder}: {report.host}, {report.parameters:,} parameters, step {report.step}")
    if report.verification:
        print("\n".join(f"  {line}" for line in report.verification.lines()))


def run_import(options: argparse.Namespace) -> None:
    report = import_(options.folder, options.out, options.block, options.source_length, options.target_length)
    print(
        f"{report.folder}: {report.parameters:,} parameters of {report.host} as {report.block}, without optimizer state"
    )


def run_verify(options: argparse.Namespace) -> None:
    trained = TrainedModel.open(options.source)
    result = verify(trained, options.folder)
    record(trained, result)
    print(f"{options.folder} computes what {trained.checkpoint.folder} does")
    print("\n".join(f"  {line}" for line in result.lines()))
    try:
        print(f"  {check_validation_loss(trained, options.folder).line()}")
    except NotComputed as reason:
        print(f"  validation loss not computed: {reason}")


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    return run(lambda: options.run(options))


if __name__ == "__main__":
    sys.exit(main())
