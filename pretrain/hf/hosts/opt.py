"""OPTForCausalLM: holds a Post-LN decoder, DeepNorm folded into one, and a Pre-LN decoder without biases.

The class (transformers, modeling_opt.py): learned positions from row 2 on, counted by the attention mask (padding reads
row 1, so the text may stand at either end); no norm on embeddings; LayerNorm eps fixed at 1e-5; biases on all
projections or on none; `do_layer_norm_before` chooses Pre-LN, with a norm after the last layer, or Post-LN without one.
A `word_embed_proj_dim` other than the width would add projections around the stack.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import AutoModelForCausalLM, GenerationConfig, OPTConfig, OPTForCausalLM, PretrainedConfig

from pretrain.blocks.norms import BASE_EPS
from pretrain.errors import UserError
from pretrain.hf.hosts import shared
from pretrain.hf.hosts.base import Host, register
from pretrain.hf.tokenizer import Marks
from pretrain.hf.trained import OUTPUT_TABLE, TOKEN_TABLE, Architecture
from pretrain.hf.transforms import Entry
from pretrain.objectives.tokens import SpecialTokens

FAMILY = "decoder"  # in messages
POSITION_OFFSET = 2


@register
class OPT(Host):
    """The decoder host of Post-LN and DeepNorm."""

    model_type = "opt"
    model_class = OPTForCausalLM
    auto_class = AutoModelForCausalLM
    pipeline_tag = "text-generation"
    family = "decoder"
    blocks = shared.POST_LN | shared.PRE_LN
    objective = "causal_lm"
    marks = Marks(bos=True, eos=False)
    padding_side = "left"

    def objections(self, architecture: Architecture) -> Iterator[str]:
        yield from shared.objections(architecture, BASE_EPS, embedding_norm=False, biases=False)

    def config(self, architecture: Architecture, tokens: SpecialTokens) -> PretrainedConfig:
        model = architecture.model
        return OPTConfig(
            vocab_size=architecture.vocab_size,
            max_position_embeddings=architecture.target_length,
            hidden_size=model.hidden_size,
            word_embed_proj_dim=model.hidden_size,
            num_hidden_layers=model.decoder_layers,
            num_attention_heads=model.num_heads,
            ffn_dim=model.ffn_size,
            activation_function=shared.ACTIVATIONS[model.activation],
            do_layer_norm_before=_is_pre_ln(model.block.kind),  # type: ignore[attr-defined]
            enable_bias=model.bias,
            dropout=model.dropout,
            attention_dropout=0.0,
            layerdrop=0.0,
            tie_word_embeddings=model.tie_embeddings,
            pad_token_id=tokens.pad,
            bos_token_id=tokens.bos,
            eos_token_id=tokens.eos,
        )

    def generation_config(self, architecture: Architecture, tokens: SpecialTokens) -> GenerationConfig:
        return shared.continues(architecture, tokens)

    def entries(self, architecture: Architecture) -> Iterator[Entry]:
        yield Entry("model.decoder.embed_tokens.weight", TOKEN_TABLE)
        yield shared.positions("model.decoder.embed_positions.weight", "decoder", architecture, POSITION_OFFSET)
        for name, layer in shared.layers(architecture):
            for theirs, ours in shared.FAIRSEQ_LAYER.items():
                bias = architecture.model.bias or ours in shared.NORMS
                yield from shared.module(f"model.{name}.{theirs}", f"{name}.{ours}", shared.fold_of(layer, ours), bias)
        if _is_pre_ln(architecture.model.block.kind):  # type: ignore[attr-defined]
            yield from shared.module("model.decoder.final_layer_norm", "decoder.final_norm")
        if not architecture.model.tie_embeddings:
            yield Entry("lm_head.weight", OUTPUT_TABLE)

    def module_of(self, layer: str) -> str | None:
        if layer == "head":
            return "lm_head"
        return f"model.{layer}".replace("final_norm", "final_layer_norm")

    def architecture_of(self, config: PretrainedConfig, known: Mapping[str, Any]) -> Architecture:
        shared.expect(
            config,
            FAMILY,
            word_embed_proj_dim=config.hidden_size,
            layer_norm_elementwise_affine=True,
            _remove_final_layer_norm=False,
        )
        before = config.do_layer_norm_before
        model = shared.model_section(
            known,
            "pre_ln" if before else "post_ln",
            family=self.family,
            decoder_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            ffn_size=config.ffn_dim,
            activation=shared.activation_of(config, "activation_function", FAMILY),
            bias=config.enable_bias,
            dropout=config.dropout,
            embedding_norm=False,
            tie_embeddings=config.tie_word_embeddings,
        )
        kind = model.block.kind  # type: ignore[attr-defined]
        if kind in self.blocks and _is_pre_ln(kind) != before:
            raise UserError(
                f"config.json: do_layer_norm_before = {before} is not what model.block.kind {kind} computes"
            )
        return Architecture(model, config.vocab_size, 0, config.max_position_embeddings)


def _is_pre_ln(kind: str) -> bool:
    return kind in shared.PRE_LN
