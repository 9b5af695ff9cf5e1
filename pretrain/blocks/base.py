"""What every block design shares: where it stands in the model, its branches, and the order of its sublayers.

A design states one equation, `sublayer`: how a branch joins the residual stream.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from pretrain.blocks.attention import Attention
from pretrain.blocks.dropout import KeyedDropout
from pretrain.blocks.init import Initialiser, xavier_normal
from pretrain.blocks.mlp import FeedForward
from pretrain.blocks.norms import BASE_EPS, LayerNorm


@dataclass(frozen=True)
class BlockPlace:
    """Where a block stands and how large it is.

    `encoder_layers` (N) and `decoder_layers` (M) are 0 where the model has no such stack; designs that scale with
    depth, such as DeepNorm, need both. `index` counts from 0 within its stack.
    """

    stack: Literal["encoder", "decoder"]
    index: int
    encoder_layers: int
    decoder_layers: int
    hidden_size: int
    num_heads: int
    ffn_size: int
    activation: str = "relu"
    dropout: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.stack}.layers.{self.index}"

    @property
    def causal(self) -> bool:
        return self.stack == "decoder"

    @property
    def cross_attention(self) -> bool:
        return self.stack == "decoder" and self.encoder_layers > 0


class Streams(NamedTuple):
    """What a block reads beside the residual stream."""

    sample_key: Tensor
    """int64 [B]: keys dropout."""
    mask: Tensor | None = None
    """bool [B, 1, 1, S]: which positions self-attention may see; None: all (or causal)."""
    memory: Tensor | None = None
    """[B, S, d]: the encoder's output, for cross-attention."""
    memory_mask: Tensor | None = None
    """bool [B, 1, 1, S]: which positions of the memory may be seen."""


class Block(nn.Module, ABC):
    """A transformer layer: self-attention, cross-attention (in a decoder over an encoder), feed-forward.

    Args:
        place: where the block stands.
        branch_init: initialiser of v_proj, out_proj, fc1 and fc2; q_proj and k_proj always have gain 1.
        norm_eps: epsilon of the block's norms.
    """

    final_norm: ClassVar[bool] = False
    """Whether a stack of these blocks ends with a norm of its own."""

    def __init__(self, place: BlockPlace, branch_init: Initialiser | None = None, norm_eps: float = BASE_EPS):
        super().__init__()
        init = branch_init or xavier_normal()
        d, heads = place.hidden_size, place.num_heads
        self.self_attention = Attention(d, heads, place.causal, value_init=init, out_init=init)
        self.self_attention_norm = LayerNorm(d, norm_eps)
        if place.cross_attention:
            self.cross_attention = Attention(d, heads, causal=False, value_init=init, out_init=init)
            self.cross_attention_norm = LayerNorm(d, norm_eps)
        self.ffn = FeedForward(d, place.ffn_size, place.activation, init)
        self.ffn_norm = LayerNorm(d, norm_eps)
        self.has_cross_attention = place.cross_attention
        self.dropouts = nn.ModuleList(
            KeyedDropout(place.dropout, dropout_key(place.name, sublayer))
            for sublayer in range(3 if place.cross_attention else 2)
        )

    @abstractmethod
    def sublayer(self, x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """One residual step of the design: x, a norm and a branch, joined by the design's equation."""

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """x [B, T, d] -> [B, T, d]."""
        key = streams.sample_key
        drop_attention, *drop_cross, drop_ffn = self.dropouts

        def self_attention(y: Tensor) -> Tensor:
            return drop_attention(self.self_attention(y, y, streams.mask), key)

        def cross_attention(y: Tensor) -> Tensor:
            return drop_cross[0](self.cross_attention(y, streams.memory, streams.memory_mask), key)

        def ffn(y: Tensor) -> Tensor:
            return drop_ffn(self.ffn(y), key)

        x = self.sublayer(x, self.self_attention_norm, self_attention)
        if self.has_cross_attention:
            x = self.sublayer(x, self.cross_attention_norm, cross_attention)
        return self.sublayer(x, self.ffn_norm, ffn)


def dropout_key(layer_name: str, sublayer: int) -> int:
    """A layer's share of the dropout key: stable over processes and versions."""
    digest = hashlib.blake2b(f"{layer_name}/{sublayer}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
