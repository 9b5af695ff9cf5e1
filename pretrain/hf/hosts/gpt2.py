"""GPT2LMHeadModel: holds a Pre-LN decoder.

The class (transformers, modeling_gpt2.py): learned positions counted from row 0 whatever the attention mask, no norm on
embeddings, one eps for all norms, a norm after the last layer. Its linear maps are Conv1D: weights [in, out], always
with a bias; q, k and v are one map, in this order. Scores are divided by sqrt(d_h) while `scale_attn_weights` is true.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import AutoModelForCausalLM, GenerationConfig, GPT2Config, GPT2LMHeadModel, PretrainedConfig

from pretrain.hf.hosts import shared
from pretrain.hf.hosts.base import Host, register
from pretrain.hf.tokenizer import Marks
from pretrain.hf.trained import OUTPUT_TABLE, TOKEN_TABLE, Architecture
from pretrain.hf.transforms import Entry, Transpose
from pretrain.objectives.tokens import SpecialTokens

FAMILY = "decoder"  # in messages
# Its tanh-GELU is "gelu_new"; what else reads GPT-2 folders may know no other name.
ACTIVATIONS = shared.ACTIVATIONS | {"gelu_tanh": "gelu_new"}
# GPT2's module in a layer -> ours, or several of ours that are one in GPT2.
NORMS = {"ln_1": "self_attention_norm", "ln_2": "ffn_norm"}
MAPS = {
    "attn.c_attn": ("self_attention.q_proj", "self_attention.k_proj", "self_attention.v_proj"),
    "attn.c_proj": ("self_attention.out_proj",),
    "mlp.c_fc": ("ffn.fc1",),
    "mlp.c_proj": ("ffn.fc2",),
}


@register
class GPT2(Host):
    """The first choice for a Pre-LN decoder; OPT takes the one without biases."""

    model_type = "gpt2"
    model_class = GPT2LMHeadModel
    auto_class = AutoModelForCausalLM
    pipeline_tag = "text-generation"
    family = "decoder"
    blocks = shared.PRE_LN
    objective = "causal_lm"
    marks = Marks(bos=True, eos=False)
    padding_side = "left"

    def objections(self, architecture: Architecture) -> Iterator[str]:
        yield from shared.objections(architecture, architecture.model.norm_eps, embedding_norm=False)

    def config(self, architecture: Architecture, tokens: SpecialTokens) -> PretrainedConfig:
        model = architecture.model
        return GPT2Config(
            vocab_size=architecture.vocab_size,
            n_positions=architecture.target_length,
            n_embd=model.hidden_size,
            n_layer=model.decoder_layers,
            n_head=model.num_heads,
            n_inner=model.ffn_size,
            activation_function=ACTIVATIONS[model.activation],
            resid_pdrop=model.dropout,
            embd_pdrop=model.dropout,
            attn_pdrop=0.0,
            layer_norm_epsilon=model.norm_eps,
            tie_word_embeddings=model.tie_embeddings,
            pad_token_id=tokens.pad,
            bos_token_id=tokens.bos,
            eos_token_id=tokens.eos,
        )

    def generation_config(self, architecture: Architecture, tokens: SpecialTokens) -> GenerationConfig:
        return shared.continues(architecture, tokens)

    def entries(self, architecture: Architecture) -> Iterator[Entry]:
        yield Entry("transformer.wte.weight", TOKEN_TABLE)
        yield shared.positions("transformer.wpe.weight", "decoder", architecture)
        for name, layer in shared.layers(architecture):
            block = f"transformer.h.{name.rsplit('.', 1)[1]}"
            for theirs, ours in NORMS.items():
                yield from shared.module(f"{block}.{theirs}", f"{name}.{ours}", shared.fold_of(layer, ours))
            for theirs, parts in MAPS.items():
                yield Entry(f"{block}.{theirs}.weight", tuple(f"{name}.{part}.weight" for part in parts), Transpose())
                yield Entry(f"{block}.{theirs}.bias", tuple(f"{name}.{part}.bias" for part in parts))
        yield from shared.module("transformer.ln_f", "decoder.final_norm")
        if not architecture.model.tie_embeddings:
            yield Entry("lm_head.weight", OUTPUT_TABLE)

    def module_of(self, layer: str) -> str | None:
        names = {"decoder.embeddings": "transformer.drop", "decoder.final_norm": "transformer.ln_f", "head": "lm_head"}
        return names.get(layer) or layer.replace("decoder.layers.", "transformer.h.")

    def architecture_of(self, config: PretrainedConfig, known: Mapping[str, Any]) -> Architecture:
        shared.expect(
            config,
            FAMILY,
            scale_attn_weights=True,
            scale_attn_by_inverse_layer_idx=False,
            add_cross_attention=False,
        )
        model = shared.model_section(
            known,
            "pre_ln",
            family=self.family,
            decoder_layers=config.n_layer,
            hidden_size=config.n_embd,
            num_heads=config.n_head,
            ffn_size=config.n_inner or 4 * config.n_embd,
            activation=shared.activation_of(config, "activation_function", FAMILY),
            norm_eps=config.layer_norm_epsilon,
            bias=True,
            dropout=config.resid_pdrop,
            embedding_norm=False,
            tie_embeddings=config.tie_word_embeddings,
        )
        return Architecture(model, config.vocab_size, 0, config.n_positions)
