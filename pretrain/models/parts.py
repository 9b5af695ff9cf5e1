"""What the families are made of: embeddings, blocks in their places, masks, the output, what layers cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

import pretrain.blocks  # noqa: F401  (registers the block kinds)
from pretrain.blocks.base import BlockPlace, dropout_key
from pretrain.blocks.dropout import KeyedDropout
from pretrain.blocks.embeddings import LearnedPositions, SinusoidalPositions, Table, shrink_gradient
from pretrain.blocks.masks import document_positions
from pretrain.blocks.mlp import GATED
from pretrain.blocks.norms import NORMS
from pretrain.blocks.registry import BLOCKS
from pretrain.config.schema import ModelSection
from pretrain.models.layers import State

TOKENS = "token_embedding"
OUTPUT = "output_projection"
Stack = Literal["encoder", "decoder"]


class Embeddings(nn.Module):
    """LN(tokens + positions), dropout; norm and positions are optional.

    Sinusoids have entries up to 1 and would drown tokens of variance 1/d, so beside them, and only there, the tokens
    are multiplied by sqrt(d) (Vaswani et al. 2017, section 3.4, and fairseq).

    Args:
        length: positions.
        segmented: positions count anew in every document of the mask.
    """

    def __init__(self, config: ModelSection, stack: Stack, length: int, segmented: bool):
        super().__init__()
        d = config.hidden_size
        self.positions: nn.Module | None = None
        if config.positions == "learned":
            self.positions = LearnedPositions(length, d, config.init_std)
        elif config.positions == "sinusoidal":
            self.positions = SinusoidalPositions(length, d)
        self.token_scale = math.sqrt(d) if config.positions == "sinusoidal" else 1.0
        self.norm = final_norm(config) if config.embedding_norm else nn.Identity()
        self.dropout = KeyedDropout(config.dropout, dropout_key(f"{stack}.embeddings", 0))
        self.gradient_factor = config.embedding_gradient_shrink
        self.segmented = segmented

    def forward(self, ids: Tensor, mask: Tensor | None, tokens: Tensor, sample_key: Tensor) -> Tensor:
        """ids and mask [B, T], tokens [V, d] -> [B, T, d]; the mask is needed where segmented."""
        x = F.embedding(ids, tokens)
        if self.gradient_factor != 1.0:
            x = shrink_gradient(x, self.gradient_factor)
        if self.token_scale != 1.0:
            x = x * self.token_scale
        if self.positions is not None:
            where = document_positions(mask) if self.segmented and mask is not None else ids.shape[1]
            x = x + self.positions(where).to(x.dtype)
        return self.dropout(self.norm(x), sample_key)


def block(config: ModelSection, stack: Stack, index: int) -> nn.Module:
    """Layer `index` of a stack."""
    place = BlockPlace(
        stack=stack,
        index=index,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_heads,
        ffn_size=config.ffn_size,
        activation=config.activation,
        dropout=config.dropout,
        norm=config.norm,
        norm_eps=config.norm_eps,
        bias=config.bias,
        qk_norm=config.qk_norm,
        rotary=config.positions == "rotary",
        init_std=config.init_std,
    )
    return BLOCKS.build(config.block, place)


def final_norm(config: ModelSection) -> nn.Module:
    """A norm outside the blocks."""
    return NORMS[config.norm](config.hidden_size, config.norm_eps)


def normalise(norm: nn.Module, state: State) -> State:
    """The norm that ends a stack of Pre-LN blocks: normalises the hidden state, the rest passes."""
    return (norm(state[0]), *state[1:])


def project(_: nn.Module, state: State, output: Tensor) -> State:
    """(hidden [B, T, d],) -> (logits [B, T, V],): hidden times the transposed output matrix [V, d], no bias."""
    (hidden,) = state
    return (F.linear(hidden, output),)


def tables(config: ModelSection, vocab_size: int) -> dict[str, Callable[[], nn.Module]]:
    """The shared modules by tie key: one table if embedding and output are tied, else two."""
    table = partial(Table, vocab_size, config.hidden_size, config.init_std)
    return {TOKENS: table} if config.tie_embeddings else {TOKENS: table, OUTPUT: table}


def output_key(config: ModelSection) -> str:
    return TOKENS if config.tie_embeddings else OUTPUT


class LayerCosts:
    """Forward FLOPs a sample (2 a multiply-add; norms and softmax left out).

    Args:
        source_length, target_length: S and T; 0 where there is no such stack.
    """

    def __init__(self, config: ModelSection, vocab_size: int, source_length: int, target_length: int):
        d, f, S, T = config.hidden_size, config.ffn_size, source_length, target_length
        matrices = BLOCKS.of(config.block).attention_matrices * d * d + (3 if config.activation in GATED else 2) * d * f
        self.encoder = 2.0 * S * matrices + 4.0 * S * S * d
        self.decoder = 2.0 * T * matrices + 4.0 * T * T * d
        if S and T:  # cross-attention: q and out on T, k and v on S
            self.decoder += 2.0 * (2 * T + 2 * S) * d * d + 4.0 * T * S * d
        self.head = 2.0 * (T or S) * vocab_size * d
