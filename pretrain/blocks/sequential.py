"""Designs that run their sublayers one after the other: self-attention, cross-attention, feed-forward.

A design states one equation, `sublayer`: how a branch joins the residual stream.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from pretrain.blocks.attention import Attention
from pretrain.blocks.base import Block, BlockPlace, Streams, dropout_key
from pretrain.blocks.dropout import KeyedDropout
from pretrain.blocks.init import Initialiser
from pretrain.blocks.mlp import feed_forward

Branch = Callable[[Tensor], Tensor]


class SequentialBlock(Block):
    """Self-attention, cross-attention (in a decoder over an encoder) and feed-forward, each with its `parts`.

    Args:
        place: where the block stands.
        branch_init: initialiser of v_proj, out_proj and the FFN; default `place.init()`.
        key_init: initialiser of q_proj and k_proj; default `place.init()` (Xavier with gain 1).
        eps_factor: epsilon of the block's norms, as a multiple of the model's.
    """

    parts: ClassVar[tuple[str, ...]] = ("norm",)
    """What each sublayer owns beside its branch, as self_attention_PART, cross_attention_PART and ffn_PART."""

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
        self._own("self_attention", place, eps_factor)
        if place.cross_attention:
            options = place.attention_options(rotary=False)
            self.cross_attention = Attention(d, heads, False, init, init, options, key_init)
            self._own("cross_attention", place, eps_factor)
        self.ffn = feed_forward(d, place.ffn_size, place.activation, init, place.bias)
        self._own("ffn", place, eps_factor)
        self.has_cross_attention = place.cross_attention
        self.dropouts = nn.ModuleList(
            KeyedDropout(place.dropout, dropout_key(place.name, sublayer))
            for sublayer in range(3 if place.cross_attention else 2)
        )

    def build_part(self, part: str, place: BlockPlace, eps_factor: float) -> nn.Module:
        """One of `parts`: a norm, unless the design says otherwise."""
        return place.build_norm(eps_factor)

    def _own(self, sublayer: str, place: BlockPlace, eps_factor: float) -> None:
        for part in self.parts:
            self.add_module(f"{sublayer}_{part}", self.build_part(part, place, eps_factor))

    def parts_of(self, sublayer: str) -> dict[str, Any]:
        return {part: getattr(self, f"{sublayer}_{part}") for part in self.parts}

    @abstractmethod
    def sublayer(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """One residual step by the design's equation; beside x it takes, by name, `branch` and each of `parts`."""

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """x [B, T, d] -> [B, T, d]."""
        self_attention, cross_attention, ffn = self.branches(streams)
        x = self.sublayer(x, branch=self_attention, **self.parts_of("self_attention"))
        if self.has_cross_attention:
            x = self.sublayer(x, branch=cross_attention, **self.parts_of("cross_attention"))
        return self.sublayer(x, branch=ffn, **self.parts_of("ffn"))

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
