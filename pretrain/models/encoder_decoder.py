"""The encoder-decoder family: [encoder embeddings, N encoder layers, decoder embeddings, M decoder layers, head].

The raw target ids travel through the encoder as integers and are embedded at the border, so that the encoder's
stages carry one floating tensor only. Where samples are segmented, the target's mask travels with them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from pretrain.blocks.base import Streams
from pretrain.blocks.masks import padding_mask, segment_mask
from pretrain.blocks.registry import BLOCKS
from pretrain.config.schema import ModelSection
from pretrain.models.layers import LayerSpec, ModelSpec, State
from pretrain.models.parts import (
    TOKENS,
    Embeddings,
    LayerCosts,
    block,
    final_norm,
    normalise,
    output_key,
    project,
    tables,
)


class EncoderState(NamedTuple):
    """What travels between encoder layers."""

    hidden: Tensor
    """[B, S, d]"""
    source_mask: Tensor
    """int64 [B, S], see `blocks.masks`"""
    decoder_input_ids: Tensor
    """int64 [B, T]"""
    sample_key: Tensor
    """int64 [B]"""


class DecoderState(NamedTuple):
    """What travels between decoder layers."""

    hidden: Tensor
    """[B, T, d]"""
    memory: Tensor
    """[B, S, d], the encoder's output"""
    source_mask: Tensor
    """int64 [B, S]"""
    sample_key: Tensor
    """int64 [B]"""


class OutputState(NamedTuple):
    """What the decoder hands to the final norm and the head; the memory has done its work."""

    hidden: Tensor
    """[B, T, d]"""


def embed_source(embeddings: nn.Module, state: State, tokens: Tensor) -> State:
    """(input_ids, attention_mask, decoder_input_ids, sample_key) -> EncoderState."""
    input_ids, source_mask, decoder_input_ids, sample_key = state
    hidden = embeddings(input_ids, None, tokens, sample_key)
    return tuple(EncoderState(hidden, source_mask, decoder_input_ids, sample_key))


def encode(layer: nn.Module, state: State) -> State:
    """EncoderState -> EncoderState."""
    x = EncoderState(*state)
    hidden = layer(x.hidden, Streams(x.sample_key, mask=padding_mask(x.source_mask)))
    return tuple(x._replace(hidden=hidden))


def embed_target(embeddings: nn.Module, state: State, tokens: Tensor) -> State:
    """EncoderState -> DecoderState: the encoder's output becomes the memory."""
    x = EncoderState(*state)
    hidden = embeddings(x.decoder_input_ids, None, tokens, x.sample_key)
    return tuple(DecoderState(hidden, x.hidden, x.source_mask, x.sample_key))


def decode(layer: nn.Module, state: State) -> State:
    """DecoderState -> DecoderState."""
    x = DecoderState(*state)
    hidden = layer(x.hidden, Streams(x.sample_key, memory=x.memory, memory_mask=padding_mask(x.source_mask)))
    return tuple(x._replace(hidden=hidden))


# The same with documents packed into a sample: the target's mask is the last of the state.


def embed_source_segments(embeddings: nn.Module, state: State, tokens: Tensor) -> State:
    """(input_ids, attention_mask, decoder_input_ids, decoder_attention_mask, sample_key) -> (*EncoderState, mask)."""
    input_ids, source_mask, decoder_input_ids, target_mask, sample_key = state
    hidden = embeddings(input_ids, source_mask, tokens, sample_key)
    return (*EncoderState(hidden, source_mask, decoder_input_ids, sample_key), target_mask)


def encode_segments(layer: nn.Module, state: State) -> State:
    x = EncoderState(*state[:-1])
    hidden = layer(x.hidden, Streams(x.sample_key, segment_mask(x.source_mask, x.source_mask, causal=False)))
    return (*x._replace(hidden=hidden), state[-1])


def embed_target_segments(embeddings: nn.Module, state: State, tokens: Tensor) -> State:
    x, target_mask = EncoderState(*state[:-1]), state[-1]
    hidden = embeddings(x.decoder_input_ids, target_mask, tokens, x.sample_key)
    return (*DecoderState(hidden, x.hidden, x.source_mask, x.sample_key), target_mask)


def decode_segments(layer: nn.Module, state: State) -> State:
    x, target_mask = DecoderState(*state[:-1]), state[-1]
    own = segment_mask(target_mask, target_mask, causal=True)
    cross = segment_mask(target_mask, x.source_mask, causal=False)
    hidden = layer(x.hidden, Streams(x.sample_key, own, x.memory, cross))
    return (*x._replace(hidden=hidden), target_mask)


def hand_over(step: Callable[[nn.Module, State], State], layer: nn.Module, state: State) -> State:
    """The last decoder layer: a floating tensor nobody reads would cross a stage without a gradient."""
    return tuple(OutputState(step(layer, state)[0]))


def encoder_decoder(
    config: ModelSection, vocab_size: int, source_length: int, target_length: int, segmented: bool = False
) -> ModelSpec:
    """The family's descriptors.

    Args:
        config: the model section.
        vocab_size: V, rows of the token embedding.
        source_length: S, positions of the encoder.
        target_length: T, positions of the decoder.
        segmented: the masks tell packed documents apart.
    """
    last, norms = config.decoder_layers - 1, BLOCKS.of(config.block).final_norm
    costs = LayerCosts(config, vocab_size, source_length, target_length)
    source = partial(Embeddings, config, "encoder", source_length, segmented)
    target = partial(Embeddings, config, "decoder", target_length, segmented)
    step = encode_segments if segmented else encode
    enter = embed_source_segments if segmented else embed_source
    encoder = [LayerSpec("encoder.embeddings", source, enter, tie_key=TOKENS)]
    for i in range(config.encoder_layers):
        encoder.append(LayerSpec(f"encoder.layers.{i}", partial(block, config, "encoder", i), step, costs.encoder, 2))
    step = decode_segments if segmented else decode
    enter = embed_target_segments if segmented else embed_target
    decoder = [LayerSpec("decoder.embeddings", target, enter, tie_key=TOKENS)]
    for i in range(config.decoder_layers):
        apply = partial(hand_over, step) if i == last else step
        decoder.append(LayerSpec(f"decoder.layers.{i}", partial(block, config, "decoder", i), apply, costs.decoder, 3))
    if norms:
        encoder.append(LayerSpec("encoder.final_norm", partial(final_norm, config), normalise))
        decoder.append(LayerSpec("decoder.final_norm", partial(final_norm, config), normalise))
    head = LayerSpec("head", nn.Identity, project, costs.head, tie_key=output_key(config))
    inputs = ("input_ids", "attention_mask", "decoder_input_ids", "sample_key")
    return ModelSpec(
        layers=(*encoder, *decoder, head),
        shared=tables(config, vocab_size),
        inputs=(*inputs[:-1], "decoder_attention_mask", inputs[-1]) if segmented else inputs,
        preferred_cuts=(len(encoder),),
    )
