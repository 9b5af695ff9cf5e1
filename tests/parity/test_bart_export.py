"""Export to Bart is exact, and whatever would make it inexact is found."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from pretrain.errors import CheckpointError, UserError
from pretrain.hf import mapping
from pretrain.hf.export import export
from pretrain.hf.hosts import host_for
from pretrain.hf.hosts.bart import Bart
from pretrain.hf.probe import probe_batch, probe_texts
from pretrain.hf.trained import TrainedModel
from pretrain.hf.transforms import Copy, Entry
from pretrain.hf.verify import verify

from .checkpoints import MakeCheckpoint, with_model
from .ours import state_of, whole_model

KINDS = ("post_ln", "deepnorm")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_export_is_exact(kind: str, tied: bool, make_checkpoint: MakeCheckpoint, tmp_path: Path):
    config = with_model(block={"kind": kind}, tie_embeddings=tied)
    report = export(make_checkpoint(tmp_path / "checkpoint", config), tmp_path / "hf")

    result = report.verification
    assert result is not None
    assert result.largest_logit > 0.5  # else small differences would mean little
    assert result.fold_fp64 <= 1e-12
    assert result.saved_fp64 <= (1e-12 if kind == "post_ln" else 1e-6)
    assert result.saved_native <= 1e-4


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
def test_every_activation_is_exact(activation: str, make_checkpoint: MakeCheckpoint, tmp_path: Path):
    config = with_model(activation=activation)
    result = export(make_checkpoint(tmp_path / "checkpoint", config), tmp_path / "hf").verification
    assert result is not None
    assert result.fold_fp64 <= 1e-12


def test_logits_of_the_folder_by_users_own_code(checkpoint: Path, tmp_path: Path):
    """Independent of verify.py: the whole LayerList against a plain from_pretrained, both in fp64."""
    export(checkpoint, tmp_path / "hf", verify=False)
    trained = TrainedModel.open(checkpoint)
    batch = probe_batch(trained.experiment, trained.tokenizer, trained.architecture.source_length)
    assert batch["attention_mask"].min() == 0  # padding there is
    assert (batch["labels"] == -100).any()

    ours = whole_model(trained)
    hf = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf", dtype=torch.float64).eval()
    with torch.no_grad():
        (expected,) = ours(state_of(trained, batch))
        found = hf(**{key: batch[key] for key in ("input_ids", "attention_mask", "decoder_input_ids")}).logits
    assert (found - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_rounds_once(dtype: str, checkpoint: Path, tmp_path: Path):
    result = export(checkpoint, tmp_path / "hf", dtype=dtype).verification
    assert result is not None
    assert result.dtype == dtype
    assert result.fold_fp64 <= 1e-12  # the map is right; what differs is rounding alone
    unit = torch.finfo(getattr(torch, dtype)).eps / 2
    assert unit / 10 < result.saved_fp64 < 20 * unit * result.largest_logit


def test_folder_has_what_users_need(checkpoint: Path, tmp_path: Path):
    out = tmp_path / "hf"
    export(checkpoint, out, max_shard_size="50KB", license_name="mit")

    names = {path.name for path in out.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "README.md"} <= names
    assert sum(name.endswith(".safetensors") for name in names) > 1
    assert list(tmp_path.iterdir()) == [out]  # no temporary folders stay behind
    card = (out / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "license: mit" in card
    assert "2203.00555" in card
    generation = json.loads((out / "generation_config.json").read_text())
    assert (generation["pad_token_id"], generation["decoder_start_token_id"], generation["eos_token_id"]) == (0, 2, 3)
    tokenizer = AutoTokenizer.from_pretrained(out)
    trained = TrainedModel.open(checkpoint)
    for text in probe_texts():
        assert tokenizer(text, add_special_tokens=False).input_ids == trained.tokenizer.encode(text)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_generation_equals_the_trained_models(kind: str, make_checkpoint: MakeCheckpoint, tmp_path: Path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", with_model(block={"kind": kind}))
    export(checkpoint, tmp_path / "hf", verify=False)
    trained = TrainedModel.open(checkpoint)
    batch = probe_batch(trained.experiment, trained.tokenizer, trained.architecture.source_length)
    hf = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf", dtype=torch.float64).eval()

    found = hf.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    expected = greedy_targets(trained, batch)
    assert found.shape[1] > 5
    assert torch.equal(found, expected[:, : found.shape[1]])
    assert (expected[:, found.shape[1] :] == trained.tokenizer.special.pad).all()


@torch.no_grad()
def greedy_targets(trained: TrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """[B, T + 1] ids: without a cache, by the training engine's modules."""
    model, special = whole_model(trained), trained.tokenizer.special
    rows = batch["input_ids"].shape[0]
    ids = torch.full((rows, 1), special.bos)
    done = torch.zeros(rows, dtype=torch.bool)
    for _ in range(trained.architecture.target_length):
        (logits,) = model(state_of(trained, {**batch, "decoder_input_ids": ids}))
        token = torch.where(done, special.pad, logits[:, -1].argmax(-1))
        done |= token == special.eos
        ids = torch.cat([ids, token[:, None]], dim=1)
    return ids


# What must be found. Each test breaks one thing.


def changed_entries(monkeypatch: pytest.MonkeyPatch, change) -> None:
    """Put `change(entry) -> entry or None` into Bart's map."""
    entries = Bart.entries

    def changed(self, architecture):
        return (new for entry in entries(self, architecture) if (new := change(entry)) is not None)

    monkeypatch.setattr(Bart, "entries", changed)


def test_a_forgotten_fold_is_found(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def forget(entry: Entry) -> Entry:
        folded = entry.target == "model.decoder.layers.1.encoder_attn.out_proj.weight"
        return Entry(entry.target, entry.source, Copy()) if folded else entry

    changed_entries(monkeypatch, forget)
    with pytest.raises(CheckpointError, match=r"differs from the trained model by .* first at decoder\.layers\.1 "):
        export(checkpoint, tmp_path / "hf")
    assert list(tmp_path.iterdir()) == []


def test_swapped_projections_are_found(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def swap(entry: Entry) -> Entry:
        names = {"k_proj": "v_proj", "v_proj": "k_proj"}
        for mine, other in names.items():
            if entry.target == f"model.encoder.layers.2.self_attn.{mine}.weight":
                assert entry.source is not None
                return Entry(entry.target, entry.source.replace(mine, other))
        return entry

    changed_entries(monkeypatch, swap)
    with pytest.raises(CheckpointError, match=r"first at encoder\.layers\.2 "):
        export(checkpoint, tmp_path / "hf")


def test_a_wrong_eps_in_the_host_is_found(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    build = mapping.build

    def wrong(*args):
        model = build(*args)
        model.model.encoder.layers[0].final_layer_norm.eps = 1e-6
        return model

    monkeypatch.setattr(mapping, "build", wrong)
    with pytest.raises(CheckpointError, match=r"first at encoder\.layers\.0 "):
        export(checkpoint, tmp_path / "hf")


def test_a_wrong_eps_of_ours_is_refused(checkpoint: Path, tmp_path: Path):
    architecture = TrainedModel.open(checkpoint).architecture
    architecture.skeleton.get_submodule("decoder.layers.0.ffn_norm").eps = 1e-5
    with pytest.raises(UserError, match=r"eps of a norm in decoder\.layers\.0"):
        host_for(architecture)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("model.decoder.layers.0.fc1.bias", r"decoder\.layers\.0\.ffn\.fc1\.bias has no place"),
        ("final_logits_bias", "final_logits_bias of the Hugging Face model would stay unset"),
    ],
)
def test_an_unmapped_key_is_an_error(target, message, checkpoint: Path, tmp_path: Path, monkeypatch):
    changed_entries(monkeypatch, lambda entry: None if entry.target == target else entry)
    with pytest.raises(CheckpointError, match=message):
        export(checkpoint, tmp_path / "hf", verify=False)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.encoder.layers.1.fc1.weight", lambda weight: weight + 1e-3 * (weight == weight.max())),
        ("model.decoder.layers.0.fc2.bias", torch.zeros_like),
    ],
)
def test_a_changed_file_is_found(name: str, change, checkpoint: Path, tmp_path: Path):
    export(checkpoint, tmp_path / "hf", verify=False)
    path = tmp_path / "hf" / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, name: change(weights[name])}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        verify(TrainedModel.open(checkpoint), tmp_path / "hf")


def test_a_missing_tensor_is_found(checkpoint: Path, tmp_path: Path):
    export(checkpoint, tmp_path / "hf", verify=False)
    path = tmp_path / "hf" / "model.safetensors"
    weights = load_file(path)
    del weights["model.encoder.layers.1.fc1.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing keys: model\.encoder\.layers\.1\.fc1\.weight"):
        verify(TrainedModel.open(checkpoint), tmp_path / "hf")


@pytest.mark.parametrize(("key", "value"), [("decoder_start_token_id", 3), ("activation_function", "gelu")])
def test_a_changed_config_is_found(key: str, value, checkpoint: Path, tmp_path: Path):
    export(checkpoint, tmp_path / "hf", verify=False)
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(CheckpointError, match=f"config.json: {key} is "):
        verify(TrainedModel.open(checkpoint), tmp_path / "hf")


def test_a_folder_without_its_fast_tokenizer_is_found(checkpoint: Path, tmp_path: Path):
    export(checkpoint, tmp_path / "hf", verify=False)
    (tmp_path / "hf" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="tokenizer"):
        verify(TrainedModel.open(checkpoint), tmp_path / "hf")


@pytest.mark.slow
def test_a_thousand_layers(make_checkpoint: MakeCheckpoint, tmp_path: Path):
    config = with_model(encoder_layers=500, decoder_layers=500, hidden_size=64, num_heads=2, ffn_size=128)
    checkpoint = make_checkpoint(tmp_path / "checkpoint", config)
    started = time.monotonic()
    result = export(checkpoint, tmp_path / "hf").verification
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n500+500: {result}, {seconds:.0f} s, peak {peak:.2f} GiB")

    assert result is not None
    assert result.largest_logit > 0.5
    assert result.fold_fp64 <= 1e-12
    assert result.saved_fp64 <= 1e-6
    assert result.saved_native <= 1e-4
