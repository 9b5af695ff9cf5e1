"""Native classes with weights of their own, copied into our modules: the same logits, the same gradients, in fp64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from pretrain.errors import CheckpointError, UserError
from pretrain.hf import mapping
from pretrain.hf.hosts import host_of_type
from pretrain.hf.import_ import import_
from pretrain.hf.trained import TrainedModel

from .checkpoints import perturb
from .ours import loss_of, state_of, whole_model

ROWS, LENGTH, VOCABULARY = 4, 24, 512
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
DECODER = {"vocab_size": VOCABULARY, **IDS}
GPT2_SIZES = {"n_positions": LENGTH, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 48, **DECODER}
OPT_SIZES = {
    "max_position_embeddings": LENGTH,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "init_std": 0.2,
    **DECODER,
}
BERT_SIZES = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": LENGTH,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.2,
    **IDS,
}


def gpt2(**changes: Any) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(**{**GPT2_SIZES, "initializer_range": 0.2, **changes}))


def opt(**changes: Any) -> OPTForCausalLM:
    return OPTForCausalLM(OPTConfig(**{**OPT_SIZES, **changes}))


def bert(**changes: Any) -> BertForMaskedLM:
    return BertForMaskedLM(BertConfig(**{**BERT_SIZES, **changes}))


def without_segments(model: BertForMaskedLM) -> BertForMaskedLM:
    with torch.no_grad():
        model.bert.embeddings.token_type_embeddings.weight.zero_()
    return model


def untied_bert() -> BertForMaskedLM:
    """Untied, its output reads one of its two biases; our map expects them to be equal."""
    return without_segments(bert(tie_word_embeddings=False, layer_norm_eps=1e-5, hidden_act="relu"))


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "gpt2": (gpt2, "pre_ln"),
    "gpt2-untied": (lambda: gpt2(tie_word_embeddings=False, layer_norm_epsilon=1e-6), "pre_ln"),
    "gpt2-relu": (lambda: gpt2(activation_function="relu"), "pre_ln"),
    "gpt2-gelu": (lambda: gpt2(activation_function="gelu"), "pre_ln"),
    "gpt2-silu": (lambda: gpt2(activation_function="silu"), "pre_ln"),
    "opt-post": (lambda: opt(do_layer_norm_before=False), "post_ln"),
    "opt-post-untied": (lambda: opt(do_layer_norm_before=False, tie_word_embeddings=False), "post_ln"),
    "opt-post-gelu": (lambda: opt(do_layer_norm_before=False, activation_function="gelu"), "post_ln"),
    "opt-pre": (opt, "pre_ln"),
    "opt-pre-no-bias": (lambda: opt(enable_bias=False), "pre_ln"),
    "bert": (lambda: without_segments(bert()), "post_ln"),
    "bert-untied": (untied_bert, "post_ln"),
}


@pytest.fixture
def write(tokenizer_model: bytes, tmp_path: Path) -> Callable[[Any], Path]:
    """`write(model)`: its folder, after random gains and biases."""

    def save(model: Any) -> Path:
        perturb(model, seed=3)
        if isinstance(model, BertForMaskedLM):
            model.cls.predictions.bias.data.copy_(model.cls.predictions.decoder.bias)
        folder = tmp_path / "foreign"
        model.save_pretrained(folder)
        (folder / "tokenizer.model").write_bytes(tokenizer_model)
        return folder

    return save


def batch_of(family: str) -> dict[str, Tensor]:
    """Random tokens of different lengths, padded at the end; labels where there is text, masked ones in an encoder."""
    generator = torch.Generator().manual_seed(5)
    lengths = torch.tensor([LENGTH, 17, 9, 2])
    real = torch.arange(LENGTH) < lengths[:, None]
    ids = torch.randint(4, VOCABULARY, (ROWS, LENGTH), generator=generator)
    labels = torch.randint(4, VOCABULARY, (ROWS, LENGTH), generator=generator)
    counted = real if family == "decoder" else real & (torch.rand(ROWS, LENGTH, generator=generator) < 0.5)
    return {
        "input_ids": torch.where(real, ids, 0),
        "attention_mask": real.long(),
        "labels": torch.where(counted, labels, -100),
        "sample_key": torch.arange(ROWS),
    }


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_are_those_of_the_native_class(name: str, write, tmp_path: Path):
    torch.manual_seed(0)
    build, kind = MODELS[name]
    theirs = build()
    folder = write(theirs)
    report = import_(folder, tmp_path / "imported")
    assert report.block == kind

    trained = TrainedModel.open(tmp_path / "imported")
    ours, theirs = whole_model(trained), theirs.double().eval()
    batch = batch_of(trained.experiment.model.family)
    (found,) = ours(state_of(trained, batch))
    wanted = theirs(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    real = batch["attention_mask"] != 0
    assert wanted[real].abs().max() > 0.5  # else small differences would mean little
    assert (found - wanted)[real].abs().max() <= 1e-10

    loss_of(found, batch["labels"]).backward()
    loss_of(wanted, batch["labels"]).backward()
    assert_same_gradients(trained, dict(ours.named_parameters()), theirs)


def assert_same_gradients(trained: TrainedModel, ours: dict[str, Tensor], theirs: Any) -> None:
    """By the name map, which shares no arithmetic with what is compared: these models have nothing to fold."""
    tensors, compared = mapping.tensors(theirs), set()
    host = host_of_type(theirs.config.model_type)
    for entry in host.entries(trained.architecture):
        if not entry.sources:
            continue
        gradient = tensors[entry.target].grad
        if gradient is None:  # untied BERT does not read this bias, but its copy
            assert entry.target == "cls.predictions.bias"
            gradient = tensors["cls.predictions.decoder.bias"].grad
        shapes = [tuple(ours[source].shape) for source in entry.sources]
        for source, wanted in entry.undo(gradient, shapes).items():
            found = ours[source].grad
            assert found is not None
            assert (found - wanted).abs().max() <= 1e-10, source
            compared.add(source)
    assert compared == set(ours)


def test_token_types_of_a_foreign_bert_become_a_part_of_its_positions(write, tmp_path: Path):
    torch.manual_seed(0)
    theirs = bert()
    folder = write(theirs)
    import_(folder, tmp_path / "imported")
    trained = TrainedModel.open(tmp_path / "imported")
    batch = batch_of("encoder")
    (found,) = whole_model(trained)(state_of(trained, batch))
    wanted = theirs.double().eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert theirs.bert.embeddings.token_type_embeddings.weight[0].abs().max() > 0.1
    assert (found - wanted).abs().max() <= 1e-5  # the sum of two rows was rounded to fp32


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: gpt2(scale_attn_weights=False), "scale_attn_weights = False"),
        (lambda: gpt2(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx = True"),
        (lambda: gpt2(activation_function="tanh"), "activation_function = 'tanh'"),
        (lambda: opt(word_embed_proj_dim=16), "word_embed_proj_dim = 16"),
        (lambda: opt(layer_norm_elementwise_affine=False), "layer_norm_elementwise_affine = False"),
        (lambda: bert(is_decoder=True), "is_decoder = True"),
    ],
)
def test_models_that_our_families_do_not_compute(build, message: str, write, tmp_path: Path):
    folder = write(build())
    with pytest.raises(UserError, match=f"{message} is not what our (de|en)coder can hold"):
        import_(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_block_that_the_folder_does_not_compute(write, tmp_path: Path):
    folder = write(opt(do_layer_norm_before=False))
    with pytest.raises(UserError, match=r"do_layer_norm_before = False is not what model\.block\.kind pre_ln computes"):
        import_(folder, tmp_path / "out", block="pre_ln")
    with pytest.raises(UserError, match=r"--block rezero: model\.block\.kind rezero is not among what it holds"):
        import_(folder, tmp_path / "out", block="rezero")


def test_lengths_of_a_model_of_one_stack(write, tmp_path: Path):
    folder = write(gpt2())
    import_(folder, tmp_path / "cut", target_length=10)
    assert TrainedModel.open(tmp_path / "cut").architecture.target_length == 10
    with pytest.raises(UserError, match="--source-length 10: the model has no such stack"):
        import_(folder, tmp_path / "out", source_length=10)


def test_an_untied_bert_with_two_biases(write, tmp_path: Path):
    model = untied_bert()
    folder = write(model)
    model.cls.predictions.bias.data += 1
    model.save_pretrained(folder)
    with pytest.raises((UserError, CheckpointError), match=r"decoder\.bias: differs from head\.bias"):
        import_(folder, tmp_path / "out")
