"""Fill in the blanks of a prompt with an exported span-denoising model."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from pretrain.errors import CheckpointError, UserError
from pretrain.hf.export import export, read_origin
from pretrain.hf.quiet import quiet
from pretrain.state.reader import resolve_checkpoint

SENTINEL = "<extra_id_{}>"
RUN_EXPORT = "hf"


@dataclass(frozen=True)
class Completion:
    """`text` is the prompt with every blank filled in; `spans` is what was put into each, in order."""

    text: str
    spans: list[str]


def exported_folder(path: Path) -> Path:
    """The Hugging Face folder that a user means: itself, or a run's RUN/hf, which is made if it is not there.

    Raises:
        UserError: neither.
    """
    path = Path(path)
    if (path / "config.json").is_file():
        return path
    if not path.exists():
        raise UserError(f"{path}: no such folder; give a run or a folder that convert_hf.py export wrote")
    if not (path / "checkpoints").is_dir() and not (path / RUN_EXPORT).is_dir():
        raise UserError(f"{path}: neither a run (no checkpoints/) nor an exported folder (no config.json)")
    folder = path / RUN_EXPORT
    if not (folder / "config.json").is_file():
        export(path, folder)
    return folder


def stale(path: Path, folder: Path) -> str | None:
    """A line for the user if the run at `path` has a newer checkpoint than its export in `folder`."""
    origin = read_origin(folder)
    if folder == Path(path) or origin is None:
        return None
    try:
        newest = resolve_checkpoint(path)
    except CheckpointError:  # an export outlives its checkpoints
        return None
    if newest.name.endswith(f"{origin['step']:08d}"):
        return None
    return f"{folder} is of step {origin['step']}, the newest checkpoint is {newest.name}; export again to use it"


class Filler:
    """An exported model with its tokenizer.

    Raises:
        UserError: the folder holds no such model, or a tokenizer without sentinels.
    """

    def __init__(self, folder: Path):
        with quiet():
            try:
                self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
                self.model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder, local_files_only=True).eval()
            except (OSError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise UserError(f"{folder}: no encoder-decoder that transformers can load ({reason})") from error
        vocabulary = self.tokenizer.get_vocab()
        names = itertools.takewhile(vocabulary.__contains__, map(SENTINEL.format, itertools.count()))
        self.sentinels = [vocabulary[name] for name in names]
        if not self.sentinels:
            raise UserError(f"{folder}: its tokenizer has no {SENTINEL.format(0)}; it is no span-denoising model")

    def encode(self, prompt: str) -> list[int]:
        """Ids of the prompt, eos left out; a blank is put at the end where it has none (continuation).

        Raises:
            UserError: the prompt is longer than the model's source.
        """
        ids: list[int] = self.tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
        if not set(self.sentinels) & set(ids):
            ids.append(self.sentinels[0])
        longest = self.tokenizer.model_max_length - 1
        if len(ids) > longest:
            raise UserError(f"--prompt: {len(ids)} tokens, the model reads at most {longest}; shorten it")
        return ids

    def fill(
        self,
        prompt: str,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Completion:
        """Fill in the blanks.

        Args:
            prompt: text with sentinels where something is missing; without any, it is continued.
            max_new_tokens: length limit of the output, sentinels included; default: the model's target length.
            num_beams: beams of the search; 1: greedy.
            temperature: 0 takes the likeliest token; above 0 samples, from `seed`.

        Raises:
            UserError: a wrong value, or a prompt that is too long.
        """
        longest = self.model.generation_config.max_length - 1
        length = longest if max_new_tokens is None else max_new_tokens
        _check_options(length, longest, num_beams, temperature)
        ids = self.encode(prompt)
        source = torch.tensor([[*ids, self.tokenizer.eos_token_id]])
        # A target always starts with the first blank, so that is no question to the model.
        target = torch.tensor(
            [[self.model.generation_config.decoder_start_token_id, next(t for t in ids if t in self.sentinels)]]
        )
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            output = self.model.generate(
                input_ids=source,
                attention_mask=torch.ones_like(source),
                decoder_input_ids=target,
                max_length=length + 1,  # the start mark counts
                num_beams=num_beams,
                eos_token_id=self._ends(ids),
                **sampling,
            )
        return self._put_together(ids, output[0].tolist())

    def _ends(self, ids: list[int]) -> list[int]:
        """Where to stop: at eos, or at the sentinel after the prompt's last."""
        last = max(self.sentinels.index(token) for token in ids if token in self.sentinels)
        return [self.tokenizer.eos_token_id, *self.sentinels[last + 1 : last + 2]]

    def _put_together(self, ids: list[int], output: list[int]) -> Completion:
        spans = split_at_sentinels(output, self.sentinels, set(self.tokenizer.all_special_ids))
        text: list[int] = []
        for token in ids:
            text += spans.get(token, [token])  # a blank that the model left out stays visible
        blanks = [token for token in ids if token in self.sentinels]
        return Completion(
            text=self.tokenizer.decode(text),
            spans=[self.tokenizer.decode(spans.get(token, [])) for token in blanks],
        )


def split_at_sentinels(output: list[int], sentinels: list[int], special: set[int]) -> dict[int, list[int]]:
    """`s0 span0 s1 span1 ... eos` -> {s0: span0, s1: span1}; the first mention of a sentinel counts."""
    spans: dict[int, list[int]] = {}
    current: list[int] = []
    for token in output:
        if token in sentinels:
            current = []
            spans.setdefault(token, current)
        elif token not in special:
            current.append(token)
    return spans


def _check_options(length: int, longest: int, num_beams: int, temperature: float) -> None:
    if not 2 <= length <= longest:  # a sentinel and a token
        raise UserError(f"--max-new-tokens {length}: give 2 to {longest}, the model's target length")
    if num_beams < 1:
        raise UserError(f"--num-beams {num_beams}: give 1 (greedy) or more")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"--temperature {temperature}: give 0 (the likeliest token) or more")
    if temperature and num_beams > 1:
        raise UserError(f"--num-beams {num_beams} searches and --temperature {temperature:g} samples; give one of them")
