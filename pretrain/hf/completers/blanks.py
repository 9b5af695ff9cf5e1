"""Span denoising: put text in the place of `<extra_id_0>`, `<extra_id_1>`, ..."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch

from pretrain.errors import UserError
from pretrain.hf.completers.base import Completer, Completion, Options, register
from pretrain.hf.hosts.base import Host

SENTINEL = "<extra_id_{}>"


@register
class BlankFiller(Completer):
    """The output lists each blank's sentinel and the text it stands for.

    Raises:
        UserError: as Completer; or the tokenizer has no sentinels.
    """

    objectives = ("span_denoising",)
    purpose = (
        "The model restores spans of text that `<extra_id_0>`, `<extra_id_1>`, ... stand for; its output lists each "
        "sentinel\nwith the text it stands for."
    )
    prompt = '"def add(a, b):\\n    return <extra_id_0>\\n"'

    def __init__(self, folder: Path, host: Host):
        super().__init__(folder, host)
        vocabulary = self.tokenizer.get_vocab()
        names = itertools.takewhile(vocabulary.__contains__, map(SENTINEL.format, itertools.count()))
        self.sentinels = [vocabulary[name] for name in names]
        if not self.sentinels:
            raise UserError(f"{folder}: its tokenizer has no {SENTINEL.format(0)}; it is no span-denoising model")

    def encode(self, prompt: str) -> list[int]:
        """Ids of the prompt, eos left out; a blank is put at the end where it has none (continuation)."""
        ids = self.ids(prompt)
        if not set(self.sentinels) & set(ids):
            ids.append(self.sentinels[0])
        self.check_length(ids, marks=1)
        return ids

    def answer(self, prompt: str, options: Options) -> Completion:
        longest = self.model.generation_config.max_length - 1
        length = options.length(2, longest, "the model's target length")  # a sentinel and a token
        ids = self.encode(prompt)
        source = torch.tensor([[*ids, self.tokenizer.eos_token_id]])
        # A target always starts with the first blank, so that is no question to the model.
        start = [self.model.generation_config.decoder_start_token_id, next(t for t in ids if t in self.sentinels)]
        output = self.generate(
            options,
            input_ids=source,
            attention_mask=torch.ones_like(source),
            decoder_input_ids=torch.tensor([start]),
            max_length=length + 1,  # the start mark counts
            eos_token_id=self._ends(ids),
        )
        return self.put_together(ids, output)

    def _ends(self, ids: list[int]) -> list[int]:
        """Where to stop: at eos, or at the sentinel after the prompt's last."""
        last = max(self.sentinels.index(token) for token in ids if token in self.sentinels)
        return [self.tokenizer.eos_token_id, *self.sentinels[last + 1 : last + 2]]

    def put_together(self, ids: list[int], output: list[int]) -> Completion:
        """The prompt of these ids with the output's spans in their places."""
        spans = split_at_sentinels(output, self.sentinels, set(self.tokenizer.all_special_ids))
        text: list[int] = []
        for token in ids:
            text += spans.get(token, [token])  # a blank that the model left out stays visible
        blanks = [token for token in ids if token in self.sentinels]
        return Completion(
            text=self.tokenizer.decode(text),
            parts=[self.tokenizer.decode(spans.get(token, [])) for token in blanks],
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
