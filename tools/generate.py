"""Complete a prompt with an exported model, as it was trained: a GPT continues it, a BERT fills in <mask>, a
span-denoising model <extra_id_0>, <extra_id_1>, ... (a prompt without any is continued), others write it anew."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pretrain.command_line import Parser, positive, run
from pretrain.hf.complete import exported_folder, open_completer, stale
from pretrain.hf.completers import Options

EXAMPLES = r"""examples:
  python tools/generate.py runs/gpt --prompt 'import os'
  python tools/generate.py runs/demo/hf --prompt "raise <mask>('not found')" --num-beams 4
  python tools/generate.py runs/bert --prompt 'for i in <mask>(10):'
  python tools/generate.py runs/t5 --prompt 'def <extra_id_0>(self):
      return <extra_id_1>' --temperature 0.8 --seed 1
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(version=True, description=__doc__, epilog=EXAMPLES)
    parser.add_argument("folder", type=Path, metavar="HF_DIR|RUN", help="of a run, RUN/hf is used, or made first")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="text to complete")
    parser.add_argument("--max-new-tokens", type=positive, metavar="N", help="default: as far as the model goes")
    parser.add_argument("--num-beams", type=positive, default=1, metavar="N", help="default: 1, greedy")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="sample; default: 0, greedy")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the sampling; default: %(default)s")
    return parser.parse_args(arguments)


def generate(options: argparse.Namespace) -> None:
    folder = exported_folder(options.folder)
    if note := stale(options.folder, folder):
        print(f"note: {note}", file=sys.stderr)
    chosen = Options(options.max_new_tokens, options.num_beams, options.temperature, options.seed)
    print(open_completer(folder).complete(options.prompt, chosen).text)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    return run(lambda: generate(options))


if __name__ == "__main__":
    sys.exit(main())
