"""Encoder-decoders that write a whole text: translation, and BART's denoising."""

from __future__ import annotations

import torch

from pretrain.hf.completers.base import Completer, Completion, Options, register


class Rewriter(Completer):
    """The source is the prompt, the output another text."""

    def answer(self, prompt: str, options: Options) -> Completion:
        ids = self.ids(prompt)
        self.check_length(ids, marks=1)
        longest = self.model.generation_config.max_length - 1
        source = torch.tensor([[*ids, self.tokenizer.eos_token_id]])
        output = self.generate(
            options,
            input_ids=source,
            attention_mask=torch.ones_like(source),
            max_length=options.length(1, longest, "the model's target length") + 1,  # the start mark counts
        )
        text = self.text(output)
        return Completion(text, [text])


@register
class Translator(Rewriter):
    """Writes the translation of the prompt."""

    objectives = ("translation",)
    purpose = "The model translates a text."
    prompt = '"Open the file"'


@register
class Restorer(Rewriter):
    """Writes the prompt anew, with text for each `<mask>`."""

    objectives = ("bart_denoising",)
    purpose = "The model writes a text anew; each `<mask>` in it stands for any number of tokens, none included."
    prompt = '"def add(a, b):\\n    return <mask>\\n"'
