"""BartForConditionalGeneration: holds a Post-LN encoder-decoder, and DeepNorm folded into one.

The class (transformers, modeling_bart.py): learned positions that start at row 2, a LayerNorm on the embeddings of
both stacks, LayerNorm eps fixed at 1e-5, biases everywhere, a logits bias that our models do not have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    PretrainedConfig,
)

from pretrain.blocks.norms import BASE_EPS, LayerNorm
from pretrain.config.schema import ModelSection
from pretrain.errors import UserError
from pretrain.hf.hosts.base import Host, register
from pretrain.hf.trained import TOKEN_TABLE, Architecture
from pretrain.hf.transforms import Copy, Entry, Fold, Rows, Transform
from pretrain.objectives.tokens import SpecialTokens

POSITION_OFFSET = 2
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "silu": "silu"}
OUR_ACTIVATIONS = {theirs: ours for ours, theirs in ACTIVATIONS.items()} | {"swish": "silu", "gelu_new": "gelu_tanh"}

# Bart's module in a layer -> ours.
ENCODER_LAYER = {
    "self_attn.q_proj": "self_attention.q_proj",
    "self_attn.k_proj": "self_attention.k_proj",
    "self_attn.v_proj": "self_attention.v_proj",
    "self_attn.out_proj": "self_attention.out_proj",
    "self_attn_layer_norm": "self_attention_norm",
    "fc1": "ffn.fc1",
    "fc2": "ffn.fc2",
    "final_layer_norm": "ffn_norm",
}
DECODER_LAYER = ENCODER_LAYER | {
    "encoder_attn.q_proj": "cross_attention.q_proj",
    "encoder_attn.k_proj": "cross_attention.k_proj",
    "encoder_attn.v_proj": "cross_attention.v_proj",
    "encoder_attn.out_proj": "cross_attention.out_proj",
    "encoder_attn_layer_norm": "cross_attention_norm",
}
LAYERS = {"encoder": ENCODER_LAYER, "decoder": DECODER_LAYER}
BRANCH_OUTPUTS = ("self_attn.out_proj", "encoder_attn.out_proj", "fc2")


@register
class Bart(Host):
    """The encoder-decoder host of Post-LN and DeepNorm."""

    model_type = "bart"
    model_class = BartForConditionalGeneration
    auto_class = AutoModelForSeq2SeqLM
    pipeline_tag = "text2text-generation"
    family = "encoder_decoder"
    blocks = frozenset({"post_ln", "deepnorm"})

    def objections(self, architecture: Architecture) -> Iterator[str]:
        if not architecture.model.embedding_norm:
            yield "model.embedding_norm is false, and it always normalises embeddings"
        for name, layer in architecture.skeleton.built_layers():
            wanted = getattr(layer, "alpha", 1.0) ** 2 * BASE_EPS
            for norm in (module for module in layer.modules() if isinstance(module, LayerNorm)):
                if not math.isclose(norm.eps, wanted, rel_tol=1e-12):
                    yield f"the eps of a norm in {name} is {norm.eps}, and the fold needs alpha^2 * 1e-5 = {wanted}"

    def config(self, architecture: Architecture, tokens: SpecialTokens) -> PretrainedConfig:
        model = architecture.model
        return BartConfig(
            vocab_size=architecture.vocab_size,
            max_position_embeddings=max(architecture.source_length, architecture.target_length),
            d_model=model.hidden_size,
            encoder_layers=model.encoder_layers,
            decoder_layers=model.decoder_layers,
            encoder_attention_heads=model.num_heads,
            decoder_attention_heads=model.num_heads,
            encoder_ffn_dim=model.ffn_size,
            decoder_ffn_dim=model.ffn_size,
            activation_function=ACTIVATIONS[model.activation],
            dropout=model.dropout,
            attention_dropout=0.0,
            activation_dropout=0.0,
            scale_embedding=False,
            tie_word_embeddings=model.tie_embeddings,
            pad_token_id=tokens.pad,
            bos_token_id=tokens.bos,
            eos_token_id=tokens.eos,
            decoder_start_token_id=tokens.bos,
            forced_eos_token_id=None,
        )

    def generation_config(self, architecture: Architecture, tokens: SpecialTokens) -> GenerationConfig:
        return GenerationConfig(
            pad_token_id=tokens.pad,
            bos_token_id=tokens.bos,
            eos_token_id=tokens.eos,
            decoder_start_token_id=tokens.bos,
            max_length=architecture.target_length + 1,  # the start mark counts, the last token is never fed back
        )

    def entries(self, architecture: Architecture) -> Iterator[Entry]:
        yield Entry("model.shared.weight", TOKEN_TABLE)
        if not architecture.model.tie_embeddings:
            # An untied Bart has three input tables and reads the latter two.
            yield Entry("model.encoder.embed_tokens.weight", TOKEN_TABLE, duplicate=True)
            yield Entry("model.decoder.embed_tokens.weight", TOKEN_TABLE, duplicate=True)
            yield Entry("lm_head.weight", "output_projection.weight")
        yield Entry("final_logits_bias", None)
        for stack in LAYERS:
            positions = f"{stack}.embeddings.positions.weight"
            yield Entry(f"model.{stack}.embed_positions.weight", positions, Rows(POSITION_OFFSET))
            yield from _module(f"model.{stack}.layernorm_embedding", f"{stack}.embeddings.norm")
        for name, layer in architecture.skeleton.built_layers():
            if ".layers." in name:
                yield from _layer(name, layer)

    def module_of(self, layer: str) -> str | None:
        if layer == "head":
            return None
        return f"model.{layer}".replace(".embeddings", ".layernorm_embedding")

    def architecture_of(self, config: PretrainedConfig, block: dict[str, Any]) -> Architecture:
        for key, theirs in _unlike(config):
            raise UserError(f"config.json: {key} = {theirs!r} is not what our encoder-decoder can hold exactly")
        model = ModelSection.model_validate(
            {
                "family": self.family,
                "encoder_layers": config.encoder_layers,
                "decoder_layers": config.decoder_layers,
                "hidden_size": config.d_model,
                "num_heads": config.encoder_attention_heads,
                "ffn_size": config.encoder_ffn_dim,
                "activation": OUR_ACTIVATIONS[config.activation_function],
                "dropout": config.dropout,
                "embedding_norm": True,
                "tie_embeddings": config.tie_word_embeddings,
                "block": block,
            }
        )
        length = config.max_position_embeddings
        return Architecture(model, config.vocab_size, length, length)


def _module(theirs: str, ours: str, transform: Transform | None = None) -> Iterator[Entry]:
    """Weight and bias of a linear map or a norm."""
    for part in ("weight", "bias"):
        yield Entry(f"{theirs}.{part}", f"{ours}.{part}", transform or Copy())


def _layer(name: str, layer: nn.Module) -> Iterator[Entry]:
    """One layer; its branches' outputs are folded by the very alpha that it was trained with."""
    fold = Fold(float(layer.alpha))  # type: ignore[arg-type]
    for theirs, ours in LAYERS[name.split(".")[0]].items():
        yield from _module(f"model.{name}.{theirs}", f"{name}.{ours}", fold if theirs in BRANCH_OUTPUTS else None)


def _unlike(config: PretrainedConfig) -> Iterator[tuple[str, Any]]:
    """Settings under which Bart computes what our family does not (rates of dropout beside: they are no weights)."""
    if config.scale_embedding:
        yield "scale_embedding", True
    if config.activation_function not in OUR_ACTIVATIONS:
        yield "activation_function", config.activation_function
    for key in ("attention_heads", "ffn_dim"):
        if getattr(config, f"encoder_{key}") != getattr(config, f"decoder_{key}"):
            yield f"decoder_{key}", getattr(config, f"decoder_{key}")
