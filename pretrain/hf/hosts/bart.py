"""BartForConditionalGeneration: holds a Post-LN encoder-decoder, and DeepNorm folded into one.

The class (transformers, modeling_bart.py): learned positions that start at row 2, a LayerNorm on the embeddings of
both stacks, LayerNorm eps fixed at 1e-5, biases everywhere, a logits bias that our models do not have. With
`scale_embedding` it multiplies the token embedding by sqrt(d), as our models do beside sinusoidal positions alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    PretrainedConfig,
)

from pretrain.blocks.norms import BASE_EPS
from pretrain.hf.hosts import shared
from pretrain.hf.hosts.base import Batch, Host, register
from pretrain.hf.tokenizer import SOURCE
from pretrain.hf.trained import OUTPUT_TABLE, TOKEN_TABLE, Architecture
from pretrain.hf.transforms import Entry
from pretrain.objectives.tokens import SpecialTokens

FAMILY = "encoder-decoder"  # in messages
POSITION_OFFSET = 2
CROSS_ATTENTION = {
    theirs.replace("self_attn", "encoder_attn"): f"cross_attention.{ours.split('.')[1]}"
    for theirs, ours in shared.ATTENTION.items()
}
LAYERS = {
    "encoder": shared.FAIRSEQ_LAYER,
    "decoder": shared.FAIRSEQ_LAYER | CROSS_ATTENTION | {"encoder_attn_layer_norm": "cross_attention_norm"},
}


@register
class Bart(Host):
    """The encoder-decoder host of Post-LN and DeepNorm."""

    model_type = "bart"
    model_class = BartForConditionalGeneration
    auto_class = AutoModelForSeq2SeqLM
    pipeline_tag = "text2text-generation"
    family = "encoder_decoder"
    blocks = shared.POST_LN
    objective = "span_denoising"
    marks = SOURCE
    segments = False

    def objections(self, architecture: Architecture) -> Iterator[str]:
        yield from shared.objections(architecture, BASE_EPS, embedding_norm=True, scales_tokens=True)

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
            activation_function=shared.ACTIVATIONS[model.activation],
            dropout=model.dropout,
            attention_dropout=0.0,
            activation_dropout=0.0,
            scale_embedding=model.positions == "sinusoidal",
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
            yield Entry("lm_head.weight", OUTPUT_TABLE)
        yield Entry("final_logits_bias", None)
        for stack, names in LAYERS.items():
            positions = f"model.{stack}.embed_positions.weight"
            yield shared.positions(positions, stack, architecture, POSITION_OFFSET)
            yield from shared.module(f"model.{stack}.layernorm_embedding", f"{stack}.embeddings.norm")
            for name, layer in shared.layers(architecture):
                if name.startswith(stack):
                    for theirs, ours in names.items():
                        fold = shared.fold_of(layer, ours)
                        yield from shared.module(f"model.{name}.{theirs}", f"{name}.{ours}", fold)

    def module_of(self, layer: str) -> str | None:
        if layer == "head":
            return None
        return f"model.{layer}".replace(".embeddings", ".layernorm_embedding")

    def architecture_of(self, config: PretrainedConfig, known: Mapping[str, Any]) -> Architecture:
        same = ("attention_heads", "ffn_dim")
        as_encoder = {f"decoder_{key}": getattr(config, f"encoder_{key}") for key in same}
        shared.expect(config, FAMILY, **as_encoder)
        model = shared.model_section(
            known,
            "post_ln",
            family=self.family,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            hidden_size=config.d_model,
            num_heads=config.encoder_attention_heads,
            ffn_size=config.encoder_ffn_dim,
            activation=shared.activation_of(config, "activation_function", FAMILY),
            dropout=config.dropout,
            positions="sinusoidal" if config.scale_embedding else "learned",
            embedding_norm=True,
            tie_embeddings=config.tie_word_embeddings,
        )
        length = config.max_position_embeddings
        return Architecture(model, config.vocab_size, length, length)

    def inputs(self, batch: Batch, segmented: bool = False) -> dict[str, Tensor]:
        mask = (batch["attention_mask"] != 0).long()
        return {
            "input_ids": batch["input_ids"],
            "attention_mask": mask,
            "decoder_input_ids": batch["decoder_input_ids"],
        }

    def answers(self, batch: Batch) -> Tensor:
        return torch.ones_like(batch["decoder_input_ids"], dtype=torch.bool)
