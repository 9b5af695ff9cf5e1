"""The encoder-decoder family: [encoder embeddings, N encoder layers, decoder embeddings, M decoder layers, head].

The raw target ids travel through the encoder as integers and are embedded at the border, so that the encoder's
stages carry one floating tensor only.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

import pretrain.blocks  # noqa: F401  (registers the block kinds)
from pretrain.blocks.base import BlockPlace, Streams, dropout_key
from pretrain.blocks.dropout import KeyedDropout
from pretrain.blocks.embeddings import LearnedPositions, Table
from pretrain.blocks.norms import LayerNorm
from pretrain.blocks.registry import BLOCKS
from pretrain.config.schema import ModelSection
from pretrain.models.layers import LayerSpec, ModelSpec, State

TOKENS = "token_embedding"
OUTPUT = "output_projection"


class EncoderState(NamedTuple):
    """What travels between encoder layers."""

    hidden: Tensor
    """[B, S, d]"""
    source_mask: Tensor
    """int64 [B, S], 1 for real tokens"""
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


def visible(mask: Tensor) -> Tensor:
    """int [B, S] -> bool [B, 1, 1, S] for attention over the keys."""
    return (mask != 0)[:, None, None, :]


class Embeddings(nn.Module):
    """LN(tokens + positions), dropout; the norm is optional."""

    def __init__(self, config: ModelSection, stack: str, length: int):
        super().__init__()
        self.positions = LearnedPositions(length, config.hidden_size)
        self.norm = LayerNorm(config.hidden_size) if config.embedding_norm else nn.Identity()
        self.dropout = KeyedDropout(config.dropout, dropout_key(f"{stack}.embeddings", 0))

    def forward(self, ids: Tensor, tokens: Tensor, sample_key: Tensor) -> Tensor:
        """ids [B, T], tokens [V, d] -> [B, T, d]."""
        x = F.embedding(ids, tokens) + self.positions(ids.shape[1])
        return self.dropout(self.norm(x), sample_key)


def embed_source(embeddings: nn.Module, state: State, tokens: Tensor) -> State:
    """(input_ids, attention_mask, decoder_input_ids, sample_key) -> EncoderState."""
    input_ids, source_mask, decoder_input_ids, sample_key = state
    hidden = embeddings(input_ids, tokens, sample_key)
    return tuple(EncoderState(hidden, source_mask, decoder_input_ids, sample_key))


def encode(block: nn.Module, state: State) -> State:
    """EncoderState -> EncoderState."""
    x = EncoderState(*state)
    hidden = block(x.hidden, Streams(x.sample_key, mask=visible(x.source_mask)))
    return tuple(x._replace(hidden=hidden))


def embed_target(embeddings: nn.Module, state: State, tokens: Tensor) -> State:
    """EncoderState -> DecoderState: the encoder's output becomes the memory."""
    x = EncoderState(*state)
    hidden = embeddings(x.decoder_input_ids, tokens, x.sample_key)
    return tuple(DecoderState(hidden, x.hidden, x.source_mask, x.sample_key))


def decode(block: nn.Module, state: State) -> State:
    """DecoderState -> DecoderState."""
    x = DecoderState(*state)
    hidden = block(x.hidden, Streams(x.sample_key, memory=x.memory, memory_mask=visible(x.source_mask)))
    return tuple(x._replace(hidden=hidden))


def decode_last(block: nn.Module, state: State) -> State:
    """DecoderState -> OutputState: a floating tensor nobody reads would cross a stage without a gradient."""
    return tuple(OutputState(DecoderState(*decode(block, state)).hidden))


def normalise(norm: nn.Module, state: State) -> State:
    """The norm that ends a stack of Pre-LN blocks: normalises the hidden state, the rest passes."""
    return (norm(state[0]), *state[1:])


def project(_: nn.Module, state: State, output: Tensor) -> State:
    """OutputState -> (logits [B, T, V],): hidden times the transposed output matrix [V, d], no bias."""
    return (F.linear(OutputState(*state).hidden, output),)


def _block(config: ModelSection, stack: str, index: int) -> nn.Module:
    place = BlockPlace(
        stack=stack,  # type: ignore[arg-type]
        index=index,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_heads,
        ffn_size=config.ffn_size,
        activation=config.activation,
        dropout=config.dropout,
    )
    return BLOCKS.build(config.block, place)


def encoder_decoder(config: ModelSection, vocab_size: int, source_length: int, target_length: int) -> ModelSpec:
    """The family's descriptors.

    Args:
        config: the model section.
        vocab_size: V, rows of the token embedding.
        source_length: S, positions of the encoder.
        target_length: T, positions of the decoder.
    """
    d, last = config.hidden_size, config.decoder_layers - 1
    costs = LayerCosts(config, source_length, target_length)
    norms = BLOCKS.of(config.block).final_norm

    encoder = [
        LayerSpec(
            "encoder.embeddings", partial(Embeddings, config, "encoder", source_length), embed_source, tie_key=TOKENS
        )
    ]
    for i in range(config.encoder_layers):
        encoder.append(
            LayerSpec(f"encoder.layers.{i}", partial(_block, config, "encoder", i), encode, costs.encoder, 2)
        )
    decoder = [
        LayerSpec(
            "decoder.embeddings", partial(Embeddings, config, "decoder", target_length), embed_target, tie_key=TOKENS
        )
    ]
    for i in range(config.decoder_layers):
        apply = decode_last if i == last else decode
        decoder.append(LayerSpec(f"decoder.layers.{i}", partial(_block, config, "decoder", i), apply, costs.decoder, 3))
    if norms:
        encoder.append(LayerSpec("encoder.final_norm", partial(LayerNorm, d), normalise))
        decoder.append(LayerSpec("decoder.final_norm", partial(LayerNorm, d), normalise))

    shared = {TOKENS: partial(Table, vocab_size, d)}
    if not config.tie_embeddings:
        shared[OUTPUT] = partial(Table, vocab_size, d)
    output = TOKENS if config.tie_embeddings else OUTPUT
    head = LayerSpec("head", nn.Identity, project, cost=2.0 * target_length * vocab_size * d, tie_key=output)
    return ModelSpec(
        layers=(*encoder, *decoder, head),
        shared=shared,
        inputs=("input_ids", "attention_mask", "decoder_input_ids", "sample_key"),
        preferred_cuts=(len(encoder),),
    )


class LayerCosts:
    """Forward FLOPs a sample of one encoder and one decoder layer (2 a multiply-add; norms and softmax left out)."""

    def __init__(self, config: ModelSection, source_length: int, target_length: int):
        d, f, S, T = config.hidden_size, config.ffn_size, source_length, target_length
        self.encoder = 2.0 * S * (4 * d * d + 2 * d * f) + 4.0 * S * S * d
        self.decoder = (
            2.0 * T * (4 * d * d + 2 * d * f)
            + 4.0 * T * T * d
            + 2.0 * (2 * T + 2 * S) * d * d  # cross-attention: q and out on T, k and v on S
            + 4.0 * T * S * d
        )
