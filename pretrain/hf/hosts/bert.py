"""BertForMaskedLM: holds a Post-LN encoder with BERT's prediction head, and DeepNorm folded into one.

The class (transformers, modeling_bert.py): learned positions from row 0 on, a token-type table whose row 0 is added to
every position, a LayerNorm on the embeddings, one eps for all norms, biases everywhere. Its head is a dense map, the
FFN's activation, a LayerNorm and a bias on the logits: as `PredictionHead`. Tied, the output's matrix is the token
table and its bias is `cls.predictions.bias`; untied, the output has both for itself and nobody reads that bias.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM, PretrainedConfig

from pretrain.hf.hosts import shared
from pretrain.hf.hosts.base import Host, register
from pretrain.hf.tokenizer import Marks
from pretrain.hf.trained import OUTPUT_TABLE, TOKEN_TABLE, Architecture
from pretrain.hf.transforms import Entry, counting
from pretrain.objectives.tokens import SpecialTokens

FAMILY = "encoder"  # in messages
SEGMENTS = 2  # rows of the token-type table; BERT's tools expect them
# BERT's module in a layer -> ours.
LAYER = {
    "attention.self.query": "self_attention.q_proj",
    "attention.self.key": "self_attention.k_proj",
    "attention.self.value": "self_attention.v_proj",
    "attention.output.dense": "self_attention.out_proj",
    "attention.output.LayerNorm": "self_attention_norm",
    "intermediate.dense": "ffn.fc1",
    "output.dense": "ffn.fc2",
    "output.LayerNorm": "ffn_norm",
}
HEAD = {"transform.dense": "head.dense", "transform.LayerNorm": "head.norm"}


@register
class Bert(Host):
    """The encoder host of Post-LN and DeepNorm."""

    model_type = "bert"
    model_class = BertForMaskedLM
    auto_class = AutoModelForMaskedLM
    pipeline_tag = "fill-mask"
    family = "encoder"
    blocks = shared.POST_LN
    objective = "masked_lm"
    marks = Marks(bos=True, eos=True)

    def objections(self, architecture: Architecture) -> Iterator[str]:
        yield from shared.objections(architecture, architecture.model.norm_eps, embedding_norm=True)

    def config(self, architecture: Architecture, tokens: SpecialTokens) -> PretrainedConfig:
        model = architecture.model
        return BertConfig(
            vocab_size=architecture.vocab_size,
            max_position_embeddings=architecture.source_length,
            type_vocab_size=SEGMENTS,
            hidden_size=model.hidden_size,
            num_hidden_layers=model.encoder_layers,
            num_attention_heads=model.num_heads,
            intermediate_size=model.ffn_size,
            hidden_act=shared.ACTIVATIONS[model.activation],
            hidden_dropout_prob=model.dropout,
            attention_probs_dropout_prob=0.0,
            layer_norm_eps=model.norm_eps,
            tie_word_embeddings=model.tie_embeddings,
            pad_token_id=tokens.pad,
            bos_token_id=tokens.bos,
            eos_token_id=tokens.eos,
        )

    def generation_config(self, architecture: Architecture, tokens: SpecialTokens) -> None:
        return None

    def entries(self, architecture: Architecture) -> Iterator[Entry]:
        embeddings, head = "bert.embeddings", "cls.predictions"
        yield Entry(f"{embeddings}.word_embeddings.weight", TOKEN_TABLE)
        yield shared.positions(f"{embeddings}.position_embeddings.weight", "encoder", architecture)
        yield Entry(f"{embeddings}.token_type_embeddings.weight", None)
        yield Entry(f"{embeddings}.position_ids", None, constant=counting)
        yield Entry(f"{embeddings}.token_type_ids", None)
        yield from shared.module(f"{embeddings}.LayerNorm", "encoder.embeddings.norm")
        for name, layer in shared.layers(architecture):
            block = f"bert.encoder.layer.{name.rsplit('.', 1)[1]}"
            for theirs, ours in LAYER.items():
                yield from shared.module(f"{block}.{theirs}", f"{name}.{ours}", shared.fold_of(layer, ours))
        for theirs, ours in HEAD.items():
            yield from shared.module(f"{head}.{theirs}", ours)
        yield Entry(f"{head}.bias", "head.bias")
        if not architecture.model.tie_embeddings:
            yield Entry(f"{head}.decoder.weight", OUTPUT_TABLE)
            yield Entry(f"{head}.decoder.bias", "head.bias", duplicate=True)

    def module_of(self, layer: str) -> str | None:
        names = {"encoder.embeddings": "bert.embeddings", "head": "cls"}
        return names.get(layer) or layer.replace("encoder.layers.", "bert.encoder.layer.")

    def architecture_of(self, config: PretrainedConfig, known: Mapping[str, Any]) -> Architecture:
        shared.expect(config, FAMILY, is_decoder=False, add_cross_attention=False)
        model = shared.model_section(
            known,
            "post_ln",
            family=self.family,
            encoder_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            ffn_size=config.intermediate_size,
            activation=shared.activation_of(config, "hidden_act", FAMILY),
            norm_eps=config.layer_norm_eps,
            bias=True,
            dropout=config.hidden_dropout_prob,
            embedding_norm=True,
            tie_embeddings=config.tie_word_embeddings,
        )
        return Architecture(model, config.vocab_size, config.max_position_embeddings, 0)

    @torch.no_grad()
    def absorb(self, model: Any) -> None:
        """Row 0 of the token types is added to every position, so it can be a part of the positions."""
        embeddings = model.bert.embeddings
        embeddings.position_embeddings.weight += embeddings.token_type_embeddings.weight[0]
        embeddings.token_type_embeddings.weight.zero_()
