"""The encoder family (BERT): [embeddings, N layers, (final norm), prediction head], every position sees all."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.blocks.base import Streams
from pretrain.blocks.init import GeneratorFor, normal, xavier_normal
from pretrain.blocks.linear import Linear
from pretrain.blocks.masks import padding_mask, segment_mask
from pretrain.blocks.mlp import ACTIVATIONS, GATED
from pretrain.blocks.registry import BLOCKS
from pretrain.config.schema import ModelSection
from pretrain.models.layers import LayerSpec, ModelSpec, State
from pretrain.models.parts import TOKENS, Embeddings, LayerCosts, block, final_norm, normalise, output_key, tables
from pretrain.objectives.cross_entropy import IGNORE_INDEX

INPUTS = ("input_ids", "attention_mask", "sample_key")


class EncoderOnlyState(NamedTuple):
    """What travels between layers."""

    hidden: Tensor
    """[B, S, d]"""
    attention_mask: Tensor
    """int64 [B, S], see `blocks.masks`"""
    sample_key: Tensor
    """int64 [B]"""
    labels: Tensor
    """int64 [B, S], -100 where nothing is predicted; [0]: every position is"""


class PredictionHead(nn.Module):
    """logits = LN(activation(dense(h))) E^T + b (Devlin et al. 2018, as in the authors' code)."""

    def __init__(self, config: ModelSection, vocab_size: int):
        super().__init__()
        d = config.hidden_size
        init = xavier_normal() if config.init_std is None else normal(config.init_std)
        self.dense = Linear(d, d, init)
        self.activation = ACTIVATIONS[GATED.get(config.activation, config.activation)]
        self.norm = final_norm(config)
        self.bias = nn.Parameter(torch.empty(vocab_size))

    @torch.no_grad()
    def initialise(self, generator: GeneratorFor) -> None:
        self.bias.zero_()

    def forward(self, hidden: Tensor, output: Tensor) -> Tensor:
        """hidden [..., d], output [V, d] -> [..., V]."""
        return F.linear(self.norm(self.activation(self.dense(hidden))), output, self.bias)


def embed(embeddings: nn.Module, state: State, tokens: Tensor) -> State:
    """(input_ids, attention_mask, sample_key), and labels where there are any -> EncoderOnlyState."""
    input_ids, attention_mask, sample_key, *given = state
    hidden = embeddings(input_ids, attention_mask, tokens, sample_key)
    labels = given[0] if given else input_ids.new_empty(0)
    return tuple(EncoderOnlyState(hidden, attention_mask, sample_key, labels))


def encode(layer: nn.Module, state: State) -> State:
    """One document a sample: all see all but padding."""
    x = EncoderOnlyState(*state)
    return tuple(x._replace(hidden=layer(x.hidden, Streams(x.sample_key, padding_mask(x.attention_mask)))))


def encode_segments(layer: nn.Module, state: State) -> State:
    """Packed documents: each sees itself."""
    x = EncoderOnlyState(*state)
    mask = segment_mask(x.attention_mask, x.attention_mask, causal=False)
    return tuple(x._replace(hidden=layer(x.hidden, Streams(x.sample_key, mask))))


def predict(head: nn.Module, state: State, output: Tensor) -> State:
    """EncoderOnlyState -> (logits,): [n, V] of the n positions with a label, row by row; without labels [B, S, V].

    A masked LM predicts 15% of its positions: the other logits would be computed for nothing.
    """
    x = EncoderOnlyState(*state)
    hidden = x.hidden[x.labels != IGNORE_INDEX] if x.labels.numel() else x.hidden
    return (head(hidden, output),)


def encoder(
    config: ModelSection, vocab_size: int, source_length: int, target_length: int, segmented: bool = False
) -> ModelSpec:
    """The family's descriptors.

    Args:
        config: the model section.
        vocab_size: V, rows of the token embedding.
        source_length: S, positions.
        target_length: 0.
        segmented: the attention mask tells documents apart.
    """
    costs = LayerCosts(config, vocab_size, source_length, 0)
    embeddings = partial(Embeddings, config, "encoder", source_length, segmented)
    apply = encode_segments if segmented else encode
    layers = [LayerSpec("encoder.embeddings", embeddings, embed, tie_key=TOKENS)]
    for i in range(config.encoder_layers):
        layers.append(LayerSpec(f"encoder.layers.{i}", partial(block, config, "encoder", i), apply, costs.encoder, 2))
    if BLOCKS.of(config.block).final_norm:
        layers.append(LayerSpec("encoder.final_norm", partial(final_norm, config), normalise))
    head = partial(PredictionHead, config, vocab_size)
    dense = 2.0 * source_length * config.hidden_size**2
    layers.append(LayerSpec("head", head, predict, dense + costs.head, tie_key=output_key(config)))
    return ModelSpec(tuple(layers), tables(config, vocab_size), INPUTS, labels=True)
