"""Designs that run their sublayers one after the other: self-attention, cross-attention, feed-forward.

A design states one equation, `sublayer`: how a branch joins the residual stream.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from pretrain.blocks.attention import Attention
from pretrain.blocks.base import Block, BlockPlace, Streams, dropout_key
from pretrain.blocks.dropout import KeyedDropout
from pretrain.blocks.init import Initialiser
from pretrain.blocks.mlp import feed_forward

Branch = Callable[[Tensor], Tensor]


class SequentialBlock(Block):
    """Self-attention, cross-attention (in a decoder over an encoder) and feed-forward, each with a norm.

    Args:
        place: where the block stands.
        branch_init: initialiser of v_proj, out_proj and the FFN; default `place.init()`.
        key_init: initialiser of q_proj and k_proj; default `place.init()` (Xavier with gain 1).
        eps_factor: epsilon of the block's norms, as a multiple of the model's.
    """

    def __init__(
        self,
        place: BlockPlace,
        branch_init: Initialiser | None = None,
        key_init: Initialiser | None = None,
        eps_factor: float = 1.0,
    ):
        super().__init__()
        d, heads = place.hidden_size, place.num_heads
        init, key_init = branch_init or place.init(), key_init or place.init()
        options = place.attention_options()
        self.self_attention = Attention(d, heads, place.causal, init, init, options, key_init)
        self.self_attention_norm = place.build_norm(eps_factor)
        if place.cross_attention:
            options = place.attention_options(rotary=False)
            self.cross_attention = Attention(d, heads, False, init, init, options, key_init)
            self.cross_attention_norm = place.build_norm(eps_factor)
        self.ffn = feed_forward(d, place.ffn_size, place.activation, init, place.bias)
        self.ffn_norm = place.build_norm(eps_factor)
        self.has_cross_attention = place.cross_attention
        self.dropouts = nn.ModuleList(
            KeyedDropout(place.dropout, dropout_key(place.name, sublayer))
            for sublayer in range(3 if place.cross_attention else 2)
        )

    @abstractmethod
    def sublayer(self, x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
        """One residual step of the design: x, a norm and a branch, joined by the design's equation."""

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """x [B, T, d] -> [B, T, d]."""
        self_attention, cross_attention, ffn = self.branches(streams)
        x = self.sublayer(x, self.self_attention_norm, self_attention)
        if self.has_cross_attention:
            x = self.sublayer(x, self.cross_attention_norm, cross_attention)
        return self.sublayer(x, self.ffn_norm, ffn)

    def branches(self, streams: Streams) -> tuple[Branch, Branch, Branch]:
        """G of self-attention, cross-attention and FFN, dropout included, as functions of their input alone."""
        key = streams.sample_key
        drop_attention, *drop_cross, drop_ffn = self.dropouts

        def self_attention(y: Tensor) -> Tensor:
            return drop_attention(self.self_attention(y, y, streams.mask), key)

        def cross_attention(y: Tensor) -> Tensor:
            return drop_cross[0](self.cross_attention(y, streams.memory, streams.memory_mask), key)

        def ffn(y: Tensor) -> Tensor:
            return drop_ffn(self.ffn(y), key)

        return self_attention, cross_attention, ffn
