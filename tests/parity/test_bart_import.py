"""Import is the inverse of export; a Bart of other origin computes the same in our modules, gradients too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, BartConfig, BartForConditionalGeneration

from pretrain.blocks.positions import sinusoids
from pretrain.errors import CheckpointError, UserError
from pretrain.hf import mapping
from pretrain.hf.export import export
from pretrain.hf.hosts import host_for
from pretrain.hf.import_ import import_
from pretrain.hf.probe import probe_batch
from pretrain.hf.trained import TrainedModel
from pretrain.hf.transforms import Fold
from pretrain.state.reader import Checkpoint

from .checkpoints import SOURCE_LENGTH, MakeCheckpoint, perturb, with_model
from .ours import loss_of, state_of, whole_model


@pytest.fixture
def foreign(tokenizer_model: bytes, tmp_path: Path) -> Path:
    """A Bart that this project did not write: its own initialisation, random gains and biases."""
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=512,
        max_position_embeddings=SOURCE_LENGTH,
        encoder_layers=3,
        decoder_layers=2,
        d_model=32,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        activation_function="gelu",
        init_std=0.2,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=2,
    )
    model = BartForConditionalGeneration(config)
    perturb(model, seed=3)
    model.save_pretrained(tmp_path / "foreign")
    (tmp_path / "foreign" / "tokenizer.model").write_bytes(tokenizer_model)
    return tmp_path / "foreign"


def test_foreign_bart_has_the_same_logits_and_gradients(foreign: Path, tmp_path: Path):
    import_(foreign, tmp_path / "imported")
    trained = TrainedModel.open(tmp_path / "imported")
    architecture = trained.architecture
    assert (architecture.source_length, architecture.target_length) == (SOURCE_LENGTH, SOURCE_LENGTH)
    ours = whole_model(trained)
    theirs = AutoModelForSeq2SeqLM.from_pretrained(foreign, dtype=torch.float64).eval()
    batch = probe_batch(trained.experiment, trained.tokenizer, SOURCE_LENGTH)

    (our_logits,) = ours(state_of(trained, batch))
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "decoder_input_ids")}
    their_logits = theirs(**inputs).logits
    assert their_logits.abs().max() > 0.5
    assert (our_logits - their_logits).abs().max() <= 1e-10

    loss_of(our_logits, batch["labels"]).backward()
    loss_of(their_logits, batch["labels"]).backward()
    gradients = mapping.tensors(theirs)
    named = dict(ours.named_parameters())
    compared = set()
    for entry in host_for(architecture).entries(architecture):
        if entry.source is None:
            continue
        mine, grad = named[entry.source].grad, gradients[entry.target].grad
        assert mine is not None
        assert grad is not None
        assert (entry.transform.undo(grad, tuple(mine.shape)) - mine).abs().max() <= 1e-10, entry.target
        compared.add(entry.source)
    assert compared == set(named)


def test_a_bart_that_scales_its_embeddings_is_one_of_sinusoids(foreign: Path, tmp_path: Path):
    """Whatever it was trained as: its config says so, and its tables are checked."""
    table = torch.zeros(SOURCE_LENGTH + 2, 32)
    table[2:] = sinusoids(SOURCE_LENGTH, 32)
    for stack in ("encoder", "decoder"):
        change_weights(foreign, f"model.{stack}.embed_positions.weight", lambda _: table)
    change_config(foreign, scale_embedding=True)
    import_(foreign, tmp_path / "imported")
    trained = TrainedModel.open(tmp_path / "imported")
    assert trained.architecture.model.positions == "sinusoidal"
    theirs = AutoModelForSeq2SeqLM.from_pretrained(foreign, dtype=torch.float64).eval()
    batch = probe_batch(trained.experiment, trained.tokenizer, SOURCE_LENGTH)
    with torch.no_grad():
        (ours,) = whole_model(trained)(state_of(trained, batch))
        wanted = theirs(**{key: batch[key] for key in ("input_ids", "attention_mask", "decoder_input_ids")}).logits
    assert wanted.abs().max() > 0.5
    assert (ours - wanted).abs().max() <= 1e-10


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_import_undoes_export(tied: bool, make_checkpoint: MakeCheckpoint, tmp_path: Path):
    source = make_checkpoint(tmp_path / "checkpoint", with_model(tie_embeddings=tied, dropout=0.1))
    export(source, tmp_path / "hf", verify=False)
    report = import_(tmp_path / "hf", tmp_path / "again")

    assert report.block == "deepnorm"
    before, after = TrainedModel.open(source), TrainedModel.open(tmp_path / "again")
    assert after.architecture == before.architecture
    assert after.experiment.objective == before.experiment.objective
    assert after.experiment.data == before.experiment.data
    assert not after.checkpoint.has("exp_avg")
    for entry in host_for(before.architecture).entries(before.architecture):
        if entry.source is None:
            continue
        old, new = before.checkpoint.read(entry.source), after.checkpoint.read(entry.source)
        if isinstance(entry.transform, Fold):
            torch.testing.assert_close(new, old, rtol=2e-7, atol=0)  # W / alpha was rounded once
        else:
            assert torch.equal(new, old), entry.source
    result = export(tmp_path / "again", tmp_path / "hf2").verification
    assert result is not None
    assert result.saved_fp64 <= 1e-6


def test_a_post_ln_folder_can_be_unfolded_to_deepnorm(foreign: Path, tmp_path: Path):
    import_(foreign, tmp_path / "as_post_ln")
    import_(foreign, tmp_path / "as_deepnorm", block="deepnorm")
    logits = []
    for name in ("as_post_ln", "as_deepnorm"):
        trained = TrainedModel.open(tmp_path / name)
        batch = probe_batch(trained.experiment, trained.tokenizer, SOURCE_LENGTH)
        logits.append(trained.architecture.logits(trained.checkpoint, batch, torch.float64))
    assert TrainedModel.open(tmp_path / "as_deepnorm").experiment.model.block.kind == "deepnorm"
    assert (logits[0] - logits[1]).abs().max() <= 1e-5


def test_positions_are_cut_only_on_demand(foreign: Path, tmp_path: Path):
    import_(foreign, tmp_path / "cut", source_length=20, target_length=12)
    checkpoint = Checkpoint(tmp_path / "cut")
    assert checkpoint.index.shape("encoder.embeddings.positions.weight") == (20, 32)
    table = load_file(foreign / "model.safetensors")["model.decoder.embed_positions.weight"]
    assert torch.equal(checkpoint.read("decoder.embeddings.positions.weight"), table[2:14])
    with pytest.raises(UserError, match=r"--source-length 41: the folder has 40 positions"):
        import_(foreign, tmp_path / "more", source_length=41)


def test_positions_trained_after_export_are_not_lost_silently(checkpoint: Path, tmp_path: Path):
    export(checkpoint, tmp_path / "hf", verify=False)
    change_weights(tmp_path / "hf", "model.decoder.embed_positions.weight", lambda table: table + 1)
    with pytest.raises(UserError, match=r"decoder\.embed_positions\.weight: has more trained positions"):
        import_(tmp_path / "hf", tmp_path / "out")


def change_config(folder: Path, **keys: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def change_weights(folder: Path, name: str, change) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[name] = change(weights[name])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: change_config(f, scale_embedding=True), "embed_positions.weight: is not what our model computes"),
        (lambda f: change_config(f, activation_function="tanh"), "activation_function = 'tanh'"),
        (lambda f: change_config(f, model_type="t5"), "model_type 't5' cannot be imported; known: bart"),
        (lambda f: (f / "tokenizer.model").unlink(), r"no tokenizer\.model"),
        (lambda f: (f / "config.json").unlink(), "not a Hugging Face folder"),
        (lambda f: change_weights(f, "final_logits_bias", lambda bias: bias + 1), "final_logits_bias: is not zero"),
    ],
)
def test_what_cannot_be_imported(change, message: str, foreign: Path, tmp_path: Path):
    change(foreign)
    with pytest.raises(UserError, match=message) as error:
        import_(foreign, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_tables_that_should_be_copies_must_be(make_checkpoint: MakeCheckpoint, tmp_path: Path):
    export(make_checkpoint(tmp_path / "c", with_model(tie_embeddings=False)), tmp_path / "hf", verify=False)
    change_weights(tmp_path / "hf", "model.decoder.embed_tokens.weight", lambda table: table + 1)
    with pytest.raises(UserError, match=r"decoder\.embed_tokens\.weight: differs from token_embedding"):
        import_(tmp_path / "hf", tmp_path / "out")


def test_a_block_that_no_host_holds(foreign: Path, tmp_path: Path):
    with pytest.raises(UserError, match="--block pre_ln"):
        import_(foreign, tmp_path / "out", block="pre_ln")


def test_a_missing_tensor_is_an_error(foreign: Path, tmp_path: Path):
    weights = load_file(foreign / "model.safetensors")
    del weights["model.encoder.layers.0.fc1.bias"]
    save_file(weights, foreign / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing keys: model\.encoder\.layers\.0\.fc1\.bias"):
        import_(foreign, tmp_path / "out")
