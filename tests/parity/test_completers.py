"""Exported models complete prompts as their objective has it; what they write is what our own modules would."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pretrain.errors import UserError
from pretrain.hf.complete import open_completer
from pretrain.hf.completers import COMPLETERS, Options
from pretrain.hf.completers.continuation import Continuation, PrefixContinuation
from pretrain.hf.completers.masks import MaskFiller
from pretrain.hf.completers.rewriting import Restorer, Translator
from pretrain.hf.hosts import HOSTS
from pretrain.hf.trained import TrainedModel
from pretrain.objectives.registry import OBJECTIVES

from .checkpoints import CONFIG, GPT, SOURCE_LENGTH, with_model
from .conftest import Exported
from .ours import greedy, logits_of, whole_model

PROMPT = "def sort(self):\n"
PREFIX = {**GPT, "objective": {"kind": "prefix_lm"}}


def test_every_host_and_every_way_belongs_to_an_objective():
    assert {host.objective for host in HOSTS} <= set(COMPLETERS) <= set(OBJECTIVES.kinds())


@pytest.mark.parametrize("which", ["gpt2", "opt"])
def test_a_gpt_continues(which: str, request: pytest.FixtureRequest):
    checkpoint, folder = request.getfixturevalue(which)
    completer = open_completer(folder)
    assert type(completer) is Continuation
    trained = TrainedModel.open(checkpoint)
    special = trained.tokenizer.special
    start = [special.bos, *trained.tokenizer.encode(PROMPT)]
    expected = greedy(whole_model(trained), start, len(start) + 6, special.eos)
    found = completer.complete(PROMPT, Options(max_new_tokens=6))
    assert found.parts == [completer.text(expected[len(start) :])]
    assert found.text == PROMPT + found.parts[0]


@pytest.mark.parametrize(("block", "prompt"), [("pre_ln", PROMPT), ("deepnorm", "x")])
def test_a_prefix_model_sees_all_of_the_prompt(block: str, prompt: str, exported: Callable[[dict], Exported]):
    checkpoint, folder = exported(with_model(PREFIX, block={"kind": block}))
    completer = open_completer(folder)
    assert type(completer) is PrefixContinuation
    trained = TrainedModel.open(checkpoint)
    special = trained.tokenizer.special
    start = [special.bos, *trained.tokenizer.encode(prompt)]
    ours, length = whole_model(trained, segmented=True), len(start) + 6
    expected = greedy(ours, start, length, special.eos, prefix=True)
    assert expected != greedy(ours, start, length, special.eos)  # else the mask would not show
    assert completer.complete(prompt, Options(max_new_tokens=6)).parts == [completer.text(expected[len(start) :])]
    assert completer.complete(prompt, Options(max_new_tokens=6, num_beams=3)).text.startswith(prompt)


def test_a_bert_fills_in_the_surest_mask_first(bert: Exported):
    completer = open_completer(bert.folder)
    assert type(completer) is MaskFiller
    trained = TrainedModel.open(bert.checkpoint)
    special, text, ours = trained.tokenizer.special, trained.tokenizer, whole_model(trained)
    parts = ["for ", " in ", ":\n"]
    ids = [special.bos, *text.encode(parts[0])]
    for part in parts[1:]:
        ids += [special.mask, *text.encode(part)]
    ids.append(special.eos)
    pieces = torch.from_numpy(trained.tokenizer.special.pieces.is_text)
    while special.mask in ids:
        chances = logits_of(ours, ids)[:, : len(pieces)].masked_fill(~pieces, -torch.inf).softmax(-1)
        chances[[place for place, token in enumerate(ids) if token != special.mask]] = 0
        place, token = divmod(int(chances.argmax()), len(pieces))
        ids[place] = token
    found = completer.complete("<mask>".join(parts))
    assert found.text == completer.text(ids)
    assert len(found.parts) == 2


@pytest.mark.parametrize(("kind", "completer"), [("bart_denoising", Restorer), ("translation", Translator)])
def test_an_encoder_decoder_writes_a_text(kind: str, completer: type, exported: Callable[[dict], Exported]):
    config = {**CONFIG, "objective": {"kind": kind}}
    checkpoint, folder = exported(config)
    found = open_completer(folder)
    assert type(found) is completer
    trained = TrainedModel.open(checkpoint)
    special, text, ours = trained.tokenizer.special, trained.tokenizer, whole_model(trained)
    source = [*text.encode("open the file"), special.eos]
    written = [special.bos]
    while len(written) < 7 and written[-1] != special.eos:
        ids = torch.tensor([source])
        with torch.no_grad():
            (logits,) = ours((ids, torch.ones_like(ids), torch.tensor([written]), torch.zeros(1, dtype=torch.int64)))
        written.append(int(logits[0, -1].argmax()))
    done = found.complete("open the file", Options(max_new_tokens=6))
    assert done.text == found.text(written)


@pytest.mark.parametrize("which", ["gpt2", "bert"])
def test_sampling_is_seeded(which: str, request: pytest.FixtureRequest):
    completer = open_completer(request.getfixturevalue(which).folder)
    prompt = "for <mask> in <mask>:"
    first, again, other = (completer.complete(prompt, Options(temperature=5.0, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert completer.complete(prompt) == completer.complete(prompt, Options(seed=9))  # greedy knows no seed


@pytest.mark.parametrize(
    ("which", "prompt", "options", "message"),
    [
        ("gpt2", "word " * 100, {}, rf"--prompt: \d+ tokens, the model reads at most {SOURCE_LENGTH - 2}"),
        ("gpt2", "a", {"max_new_tokens": 1000}, f"--max-new-tokens 1000: give 1 to {SOURCE_LENGTH - 2}, what the"),
        ("bert", "a <mask>", {"max_new_tokens": 3}, "--max-new-tokens 3: this model writes one token a mask"),
        ("bert", "a <mask>", {"num_beams": 3}, "--num-beams 3: this model writes one token a mask"),
        ("bert", "a", {}, "--prompt: has no <mask>"),
        ("bert", "word " * 100, {}, "--prompt: "),
    ],
)
def test_wrong_prompts_and_options(which: str, prompt: str, options: dict, message: str, request):
    completer = open_completer(request.getfixturevalue(which).folder)
    with pytest.raises(UserError, match=message):
        completer.complete(prompt, Options(**options))


def test_a_folder_of_other_origin_is_used_as_its_class_is(gpt2: Exported, tmp_path: Path):
    folder = shutil.copytree(gpt2.folder, tmp_path / "hf")
    (folder / "kilolayer.json").unlink()
    assert type(open_completer(folder)) is Continuation
    (folder / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(UserError, match="model_type 't5'"):
        open_completer(folder)
