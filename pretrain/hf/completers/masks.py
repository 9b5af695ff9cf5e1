"""Masked language models: put one token in the place of each `<mask>`."""

from __future__ import annotations

from pathlib import Path

import torch

from pretrain.errors import UserError
from pretrain.hf.completers.base import Completer, Completion, Options, register
from pretrain.hf.hosts.base import Host


@register
class MaskFiller(Completer):
    """Fills the mask that the model is surest of, reads the text again, and so on; each mask becomes one token.

    Raises:
        UserError: as Completer; or the tokenizer has no mask.
    """

    objectives = ("masked_lm",)
    purpose = "The model predicts the tokens that `<mask>` stands for."
    prompt = '"for i in <mask>(10):\\n"'
    example = """\
inputs = tokenizer({prompt}, return_tensors="pt")
logits = model(**inputs).logits[inputs.input_ids == tokenizer.mask_token_id]
print(tokenizer.batch_decode(logits.argmax(-1)))"""

    def __init__(self, folder: Path, host: Host):
        super().__init__(folder, host)
        self.mask = self.tokenizer.mask_token_id
        if self.mask is None:
            raise UserError(f"{folder}: its tokenizer has no mask piece; it is no masked model")
        self.no_text = torch.ones(self.model.config.vocab_size, dtype=torch.bool)
        self.no_text[: len(self.tokenizer)] = False
        self.no_text[self.tokenizer.all_special_ids] = True

    def answer(self, prompt: str, options: Options) -> Completion:
        for option, value, default in (
            ("--max-new-tokens", options.max_new_tokens, None),
            ("--num-beams", options.num_beams, 1),
        ):
            if value != default:
                raise UserError(
                    f"{option} {value}: this model writes one token a mask, one after the other; leave it out"
                )
        ids = self.ids(prompt)
        self.check_length(ids, marks=2)
        whole = torch.tensor([[self.tokenizer.bos_token_id, *ids, self.tokenizer.eos_token_id]])
        blanks = (whole[0] == self.mask).nonzero().flatten()
        if not len(blanks):
            raise UserError(f"--prompt: has no {self.tokenizer.mask_token}, which this model fills in; put one in")
        while len(left := (whole[0] == self.mask).nonzero().flatten()):
            logits = self.model(input_ids=whole, attention_mask=torch.ones_like(whole)).logits[0, left]
            logits = logits.float().masked_fill(self.no_text, -torch.inf)
            surest = logits.log_softmax(-1).max(-1).values.argmax()
            whole[0, left[surest]] = self._choose(logits[surest], options.temperature)
        return Completion(self.text(whole[0].tolist()), [self.text([token]) for token in whole[0, blanks].tolist()])

    def _choose(self, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        if not temperature:
            return logits.argmax()
        return torch.multinomial((logits / temperature).softmax(-1), 1)[0]
