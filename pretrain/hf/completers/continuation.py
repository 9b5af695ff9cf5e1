"""Language models: go on where the prompt ends."""

from __future__ import annotations

from typing import Any

import torch

from pretrain.hf.completers.base import Completer, Completion, Options, register


@register
class Continuation(Completer):
    """The output is the prompt, which begins with bos, and what follows."""

    objectives = ("causal_lm",)
    purpose = "The model continues a text."
    prompt = '"def add(a, b):\\n"'

    def answer(self, prompt: str, options: Options) -> Completion:
        ids = self.ids(prompt)
        self.check_length(ids, marks=2)  # bos, and a token to be written
        start = torch.tensor([[self.tokenizer.bos_token_id, *ids]])
        room = self.tokenizer.model_max_length - start.shape[1]
        length = options.length(1, room, "what the model's positions leave beside the prompt")
        output = self.generate(
            options,
            input_ids=start,
            attention_mask=torch.ones_like(start),
            max_length=start.shape[1] + length,
            **self.seen(start, options),
        )
        whole = self.text(output)
        # Bytes that make no character spoil those beside them, in the prompt too; then the new text stands alone.
        new = whole.removeprefix(prompt) if whole.startswith(prompt) else self.text(output[start.shape[1] :])
        return Completion(prompt + new, [new])

    def seen(self, start: torch.Tensor, options: Options) -> dict[str, Any]:
        """Further arguments of `generate` for a prompt [1, n]."""
        return {}


@register
class PrefixContinuation(Continuation):
    """The prompt is a prefix: every position of it sees all of it, which `generate` by itself does not do.

    So the prompt's keys and values are computed here, under a mask that hides nothing, and `generate` goes on from
    them. Its last position is left to `generate`, where it sees the whole prompt anyway.
    """

    objectives = ("prefix_lm",)
    purpose = (
        "The model continues a text. It was trained to see all of that text from each of its positions: give the "
        "forward pass a\n4D attention mask that hides nothing of it; `generate` by itself reads it from left to right."
    )

    def seen(self, start: torch.Tensor, options: Options) -> dict[str, Any]:
        length = start.shape[1]
        nothing_hidden = torch.ones(1, 1, length, length, dtype=torch.bool)
        positions = torch.arange(length)[None]
        read = self.model(input_ids=start, attention_mask=nothing_hidden, position_ids=positions, use_cache=True)
        cache = read.past_key_values
        cache.crop(-1)
        cache.batch_repeat_interleave(options.num_beams)
        return {"past_key_values": cache}
