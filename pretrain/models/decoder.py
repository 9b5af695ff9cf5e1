"""The decoder family (GPT): [embeddings, M layers, (final norm), head], every position sees those before it."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from pretrain.blocks.base import Streams
from pretrain.blocks.masks import segment_mask
from pretrain.blocks.registry import BLOCKS
from pretrain.config.schema import ModelSection
from pretrain.models.layers import LayerSpec, ModelSpec, State
from pretrain.models.parts import TOKENS, Embeddings, LayerCosts, block, final_norm, normalise, output_key, tables
from pretrain.models.parts import project as project_hidden


class DecoderOnlyState(NamedTuple):
    """What travels between layers."""

    hidden: Tensor
    """[B, T, d]"""
    attention_mask: Tensor
    """int64 [B, T], see `blocks.masks`"""
    sample_key: Tensor
    """int64 [B]"""


def embed(embeddings: nn.Module, state: State, tokens: Tensor) -> State:
    """(input_ids, attention_mask, sample_key) -> DecoderOnlyState."""
    input_ids, attention_mask, sample_key = state
    hidden = embeddings(input_ids, attention_mask, tokens, sample_key)
    return tuple(DecoderOnlyState(hidden, attention_mask, sample_key))


def decode(layer: nn.Module, state: State) -> State:
    """One document a sample: padding lies behind the text, where no query that counts can see it."""
    x = DecoderOnlyState(*state)
    return tuple(x._replace(hidden=layer(x.hidden, Streams(x.sample_key))))


def decode_segments(layer: nn.Module, state: State) -> State:
    """Documents or prefixes: the mask says who sees whom."""
    x = DecoderOnlyState(*state)
    mask = segment_mask(x.attention_mask, x.attention_mask, causal=True)
    return tuple(x._replace(hidden=layer(x.hidden, Streams(x.sample_key, mask))))


def project(head: nn.Module, state: State, output: Tensor) -> State:
    """DecoderOnlyState -> (logits [B, T, V],)."""
    return project_hidden(head, (DecoderOnlyState(*state).hidden,), output)


def decoder(
    config: ModelSection, vocab_size: int, source_length: int, target_length: int, segmented: bool = False
) -> ModelSpec:
    """The family's descriptors.

    Args:
        config: the model section.
        vocab_size: V, rows of the token embedding.
        source_length: 0.
        target_length: T, positions.
        segmented: the attention mask tells documents or prefixes apart.
    """
    costs = LayerCosts(config, vocab_size, 0, target_length)
    embeddings = partial(Embeddings, config, "decoder", target_length, segmented)
    apply = decode_segments if segmented else decode
    layers = [LayerSpec("decoder.embeddings", embeddings, embed, tie_key=TOKENS)]
    for i in range(config.decoder_layers):
        layers.append(LayerSpec(f"decoder.layers.{i}", partial(block, config, "decoder", i), apply, costs.decoder, 2))
    if BLOCKS.of(config.block).final_norm:
        layers.append(LayerSpec("decoder.final_norm", partial(final_norm, config), normalise))
    layers.append(LayerSpec("head", nn.Identity, project, costs.head, tie_key=output_key(config)))
    return ModelSpec(tuple(layers), tables(config, vocab_size), ("input_ids", "attention_mask", "sample_key"))
