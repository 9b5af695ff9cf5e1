"""Export of models of one stack, to GPT2, OPT and Bert, is exact; what would make it inexact is found or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, pipeline

from pretrain.config.load import build_experiment
from pretrain.errors import CheckpointError, UserError
from pretrain.hf.export import export
from pretrain.hf.hosts import host_for
from pretrain.hf.hosts.gpt2 import GPT2
from pretrain.hf.import_ import import_
from pretrain.hf.probe import probe_batch
from pretrain.hf.trained import Architecture, TrainedModel
from pretrain.hf.transforms import Entry
from pretrain.hf.verify import verify

from .checkpoints import BERT, CONFIG, GPT, SOURCE_LENGTH, MakeCheckpoint, with_model
from .conftest import Exported
from .ours import greedy, logits_of, state_of, whole_model

SINUSOIDAL = with_model(CONFIG, positions="sinusoidal")
MODELS = {
    "pre_ln": (with_model(GPT, activation="gelu_tanh"), "GPT2LMHeadModel"),
    "pre_ln-untied": (with_model(GPT, tie_embeddings=False, norm_eps=1e-6, activation="silu"), "GPT2LMHeadModel"),
    "lns": (with_model(GPT, block={"kind": "lns"}), "GPT2LMHeadModel"),
    "pre_ln-no-bias": (with_model(GPT, bias=False), "OPTForCausalLM"),
    "gpt-deepnorm": (with_model(GPT, block={"kind": "deepnorm"}), "OPTForCausalLM"),
    "gpt-deepnorm_sqrt": (with_model(GPT, block={"kind": "deepnorm_sqrt"}, bias=False), "OPTForCausalLM"),
    "gpt-post_ln": (with_model(GPT, block={"kind": "post_ln"}, tie_embeddings=False), "OPTForCausalLM"),
    "gpt-post_ln_init": (
        with_model(GPT, block={"kind": "post_ln_init"}, activation="gelu"),
        "OPTForCausalLM",
    ),
    "bert-deepnorm": (with_model(BERT, norm_eps=1e-12), "BertForMaskedLM"),
    "bert-post_ln": (with_model(BERT, block={"kind": "post_ln"}, tie_embeddings=False), "BertForMaskedLM"),
    "bert-relu": (with_model(BERT, activation="relu"), "BertForMaskedLM"),
    "bart-sinusoidal": (SINUSOIDAL, "BartForConditionalGeneration"),
    "bart-sinusoidal-untied": (with_model(SINUSOIDAL, tie_embeddings=False), "BartForConditionalGeneration"),
}
STACKS = ("encoder", "decoder")
FOLDED = {
    *("lns", "gpt-deepnorm", "gpt-deepnorm_sqrt", "bert-deepnorm", "bert-relu"),
    *("bart-sinusoidal", "bart-sinusoidal-untied"),
}


@pytest.mark.parametrize("name", MODELS)
def test_export_is_exact_and_import_undoes_it(name: str, make_checkpoint: MakeCheckpoint, tmp_path: Path):
    config, host = MODELS[name]
    source = make_checkpoint(tmp_path / "checkpoint", config)
    report = export(source, tmp_path / "hf")
    result = report.verification
    assert report.host == host
    assert result is not None
    assert result.largest_logit > 0.5  # else small differences would mean little
    assert result.fold_fp64 <= 1e-12
    assert result.saved_fp64 <= (1e-6 if name in FOLDED else 1e-12)

    import_(tmp_path / "hf", tmp_path / "again")
    before, after = TrainedModel.open(source), TrainedModel.open(tmp_path / "again")
    assert after.architecture == before.architecture
    assert after.experiment.objective == before.experiment.objective
    assert after.experiment.data == before.experiment.data
    for parameter in before.checkpoint.index.names():
        old, new = before.checkpoint.read(parameter), after.checkpoint.read(parameter)
        torch.testing.assert_close(new, old, rtol=2e-7 if name in FOLDED else 0, atol=0)  # W / alpha was rounded once


@pytest.mark.slow
def test_two_hundred_layers(make_checkpoint: MakeCheckpoint, tmp_path: Path):
    config = with_model(GPT, decoder_layers=200, block={"kind": "deepnorm"}, hidden_size=16, ffn_size=24)
    result = export(make_checkpoint(tmp_path / "checkpoint", config), tmp_path / "hf").verification
    assert result is not None
    assert result.fold_fp64 <= 1e-12
    assert result.saved_fp64 <= 1e-6


def test_logits_of_the_folder_by_users_own_code(opt: Exported, bert: Exported):
    """Independent of verify.py: the whole LayerList against a plain from_pretrained, both in fp64, text padded."""
    for (checkpoint, folder), auto in ((opt, AutoModelForCausalLM), (bert, AutoModelForMaskedLM)):
        trained = TrainedModel.open(checkpoint)
        batch = probe_batch(trained.experiment, trained.tokenizer, SOURCE_LENGTH)
        real = batch["attention_mask"] != 0
        assert not real.all()
        hf = auto.from_pretrained(folder, dtype=torch.float64).eval()
        with torch.no_grad():
            (expected,) = whole_model(trained)(state_of(trained, batch))
            found = hf(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        assert (found - expected)[real].abs().max() <= 1e-6


@pytest.mark.parametrize("which", ["gpt2", "opt", "bert"])
def test_documents_and_prefixes_reach_the_class(which: str, request: pytest.FixtureRequest):
    """Its forward pass, told who sees whom and where documents begin, computes what training does."""
    checkpoint, folder = request.getfixturevalue(which)
    trained = TrainedModel.open(checkpoint)
    host = host_for(trained.architecture)
    mask = torch.tensor([[1] * 9 + [2] * 20 + [3] * 11, [1] * 30 + [0] * 10])
    if host.family == "decoder":
        mask[0, 9:15] *= -1
        mask[1, :7] *= -1
    ids = torch.randint(4, 500, mask.shape, generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": mask}
    hf = host.auto_class.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.no_grad():
        (expected,) = whole_model(trained, segmented=True)((ids, mask, torch.zeros(2, dtype=torch.int64)))
        found = hf(**host.inputs(batch, segmented=True)).logits
        plain = hf(**host.inputs(batch)).logits
    assert (found - expected)[mask != 0].abs().max() <= 1e-6
    assert (plain - expected)[mask != 0].abs().max() > 0.1


@pytest.mark.parametrize("which", ["gpt2", "opt"])
def test_greedy_generation_of_padded_prompts(which: str, request: pytest.FixtureRequest):
    checkpoint, folder = request.getfixturevalue(which)
    trained = TrainedModel.open(checkpoint)
    ours, special = whole_model(trained), trained.tokenizer.special
    tokenizer = AutoTokenizer.from_pretrained(folder)
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    prompts = ["import", "def sort(self, key):\n", "x"]
    inputs = tokenizer(prompts, padding=True, return_tensors="pt")
    assert inputs.attention_mask[:, -1].all()  # padded at the left, or generation would go on behind the padding
    found = hf.generate(**inputs, max_new_tokens=8)
    for row, mask, prompt in zip(found.tolist(), inputs.attention_mask, prompts, strict=True):
        start = [special.bos, *trained.tokenizer.encode(prompt)]
        expected = greedy(ours, start, len(start) + 8, special.eos)
        new = row[len(mask) - len(start) :]
        assert new[: len(expected)] == expected
        assert set(new[len(expected) :]) <= {special.pad}


def test_generation_stops_where_the_positions_end(gpt2: Exported):
    hf = AutoModelForCausalLM.from_pretrained(gpt2.folder)
    assert hf.generation_config.max_length == SOURCE_LENGTH
    assert (hf.config.bos_token_id, hf.config.eos_token_id, hf.config.pad_token_id) == (2, 3, 0)


def test_the_fill_mask_pipeline(bert: Exported):
    checkpoint, folder = bert
    trained = TrainedModel.open(checkpoint)
    special = trained.tokenizer.special
    found = pipeline("fill-mask", model=str(folder))("for line in <mask>:", top_k=1)
    text = trained.tokenizer
    ids = [special.bos, *text.encode("for line in "), special.mask, *text.encode(":"), special.eos]
    wanted = int(logits_of(whole_model(trained), ids)[ids.index(special.mask)].argmax())
    assert found[0]["token"] == wanted


# What must be found or refused.


@pytest.mark.parametrize(
    ("config", "model", "reason"),
    [
        (GPT, {"norm": "rms_norm"}, "model.norm is rms_norm"),
        (GPT, {"positions": "rotary"}, "model.positions is rotary"),
        (GPT, {"positions": "sinusoidal"}, r"GPT2LMHeadModel: model.positions is sinusoidal, .*; OPTForCausalLM: "),
        (GPT, {"positions": "sinusoidal", "bias": False}, r"OPTForCausalLM: model.positions is sinusoidal, "),
        (BERT, {"positions": "sinusoidal"}, "model.positions is sinusoidal, which multiplies the token embedding by"),
        (GPT, {"activation": "swiglu"}, "model.activation is swiglu"),
        (GPT, {"qk_norm": True}, "model.qk_norm is true"),
        (GPT, {"embedding_norm": True}, "model.embedding_norm is true"),
        (GPT, {"bias": False}, None),
        (GPT, {"bias": False, "norm_eps": 1e-6}, r"GPT2LMHeadModel: model.bias is false.*OPT.*norm_eps is 1e-06"),
        (GPT, {"block": {"kind": "deepnorm"}, "norm_eps": 1e-6}, "model.norm_eps is 1e-06, and its norms have 1e-05"),
        (GPT, {"block": {"kind": "rezero"}}, "model.block.kind rezero is not among"),
        (BERT, {"norm_eps": 1e-12}, None),
        (BERT, {"block": {"kind": "pre_ln"}}, "model.block.kind pre_ln is not among"),
        (BERT, {"embedding_norm": False}, "model.embedding_norm is false"),
        (BERT, {"bias": False}, "model.bias is false"),
        (BERT, {"activation": "geglu"}, "model.activation is geglu"),
        (CONFIG, {"norm": "rms_norm"}, "model.norm is rms_norm"),
        (CONFIG, {"positions": "rotary"}, "model.positions is rotary"),
        (CONFIG, {"bias": False}, "model.bias is false"),
        (CONFIG, {"qk_norm": True}, "model.qk_norm is true"),
        (CONFIG, {"norm_eps": 1e-6}, "model.norm_eps is 1e-06"),
    ],
)
def test_models_that_no_class_holds(config: dict, model: dict, reason: str | None):
    section = build_experiment(with_model(config, **model)).model
    architecture = Architecture(section, 512, *(SOURCE_LENGTH if stack in section.family else 0 for stack in STACKS))
    if reason is None:
        host_for(architecture)
        return
    with pytest.raises(UserError, match=reason) as error:
        host_for(architecture)
    assert "\n" not in str(error.value)


def test_a_wrong_order_in_the_fused_projection_is_found(gpt2: Exported, tmp_path: Path, monkeypatch):
    entries = GPT2.entries

    def swapped(self, architecture):
        for entry in entries(self, architecture):
            wrong = entry.target == "transformer.h.1.attn.c_attn.weight"
            yield Entry(entry.target, entry.sources[::-1], entry.transform) if wrong else entry

    monkeypatch.setattr(GPT2, "entries", swapped)
    with pytest.raises(CheckpointError, match=r"first at decoder\.layers\.1 "):
        export(gpt2.checkpoint, tmp_path / "hf")


@pytest.mark.parametrize(
    ("which", "key", "value"),
    [("gpt2", "scale_attn_weights", False), ("opt", "do_layer_norm_before", True), ("bert", "eos_token_id", 1)],
)
def test_a_changed_config_is_found(which: str, key: str, value, request: pytest.FixtureRequest, tmp_path: Path):
    checkpoint, exported = request.getfixturevalue(which)
    folder = shutil.copytree(exported, tmp_path / "hf")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(CheckpointError, match=rf"config\.json: {key} is "):
        verify(TrainedModel.open(checkpoint), folder)


def test_trained_token_types_are_not_what_was_exported(bert: Exported, tmp_path: Path):
    checkpoint, exported = bert
    folder = shutil.copytree(exported, tmp_path / "hf")
    name = "bert.embeddings.token_type_embeddings.weight"
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, name: weights[name] + 1}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"{name} is not what was converted"):
        verify(TrainedModel.open(checkpoint), folder)


def test_sinusoids_that_were_trained_are_refused(make_checkpoint: MakeCheckpoint, tmp_path: Path):
    export(make_checkpoint(tmp_path / "c", SINUSOIDAL), tmp_path / "hf", verify=False)
    path = tmp_path / "hf" / "model.safetensors"
    weights = load_file(path)
    weights["model.encoder.embed_positions.weight"] += 0.1
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"encoder\.embed_positions\.weight: is not what our model computes"):
        import_(tmp_path / "hf", tmp_path / "out")
