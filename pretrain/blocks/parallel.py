"""The parallel block of ViT-22B (Dehghani et al. 2023, arXiv 2302.05442, section 2): x + Attn(N(x)) + MLP(N(x))."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.blocks.base import Block, BlockPlace, Streams, dropout_key
from pretrain.blocks.dropout import KeyedDropout
from pretrain.blocks.heads import AttentionHeads, AttentionOptions
from pretrain.blocks.init import GeneratorFor, Initialiser
from pretrain.blocks.mlp import ACTIVATIONS, GATED
from pretrain.blocks.registry import BLOCKS
from pretrain.registry import Section


class ParallelConfig(Section):
    """ViT-22B: attention and MLP side by side behind one norm, two matrix products a block, no bias on q, k and v.

    model.bias=false drops the MLP's two biases as well. The paper's other choices are the model's to make:
    model.norm=rms_norm (a norm without bias and centring) and model.activation=gelu.
    """

    kind: Literal["parallel"] = "parallel"
    qk_norm: bool = True
    """A norm over each head's q and k before their product, of the kind of model.norm. In this block it takes the
    place of model.qk_norm."""


class InputProjection(nn.Module):
    """[q | k | v | u] = y W^T + [0 | 0 | 0 | b]: one product for all that reads y.

    Rows of `weight` [3 d + widths, d]: q, k, v (d each, head by head), then each of the `widths`. `bias` is that of
    the widths alone.

    Args:
        hidden_size: d.
        widths: (m,), or (m, m) for a gated network: gate, then u.
        init: of each segment as a matrix of its own (over the fused one, Xavier's fan would be wrong for all).
        bias: whether the widths have one.
    """

    def __init__(self, hidden_size: int, widths: Sequence[int], init: Initialiser, bias: bool):
        super().__init__()
        self.sizes = [hidden_size] * 3 + list(widths)
        self.weight = nn.Parameter(torch.empty(sum(self.sizes), hidden_size))
        self.bias = nn.Parameter(torch.empty(sum(widths))) if bias else None
        self.init = init

    @torch.no_grad()
    def initialise(self, generator: GeneratorFor) -> None:
        source = generator("weight")
        for segment in self.weight.split(self.sizes):
            self.init(segment, source)
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, y: Tensor) -> tuple[Tensor, ...]:
        """y [B, T, d] -> q, k, v [B, T, d] and each width [B, T, m]."""
        bias = None if self.bias is None else F.pad(self.bias, (sum(self.sizes[:3]), 0))
        return F.linear(y, self.weight, bias).split(self.sizes, dim=-1)


class OutputProjection(nn.Module):
    """[attention | hidden] W^T + b: columns of `weight` [d, d + m] in this order, each part with its own fan."""

    def __init__(self, hidden_size: int, ffn_size: int, init: Initialiser, bias: bool):
        super().__init__()
        self.sizes = [hidden_size, ffn_size]
        self.weight = nn.Parameter(torch.empty(hidden_size, hidden_size + ffn_size))
        self.bias = nn.Parameter(torch.empty(hidden_size)) if bias else None
        self.init = init

    @torch.no_grad()
    def initialise(self, generator: GeneratorFor) -> None:
        source = generator("weight")
        for segment in self.weight.split(self.sizes, dim=1):
            self.init(segment, source)
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, attended: Tensor, hidden: Tensor) -> Tensor:
        """attended [B, T, d], hidden [B, T, m] -> [B, T, d]."""
        return F.linear(torch.cat([attended, hidden], dim=-1), self.weight, self.bias)


@BLOCKS.register(ParallelConfig)
class ParallelBlock(Block):
    """x + [attention(q, k, v) | GELU(u + b1)] W_out + b2 with [q | k | v | u] = N(x) W_in.

    Dropout falls on the sum of both branches, before the residual one.
    """

    final_norm = True
    families = frozenset({"decoder", "encoder"})

    @classmethod
    def objection(cls, config: Any, model: Any) -> str | None:
        if config.qk_norm or not model.qk_norm:
            return None
        return (
            f"model.qk_norm = true contradicts model.block.qk_norm = false; of model.block.kind = {config.kind} the "
            "latter decides; set model.block.qk_norm=true, or model.qk_norm=false"
        )

    def __init__(self, config: ParallelConfig, place: BlockPlace):
        super().__init__()
        d, m, gated = place.hidden_size, place.ffn_size, place.activation in GATED
        options = AttentionOptions(False, place.norm if config.qk_norm else None, place.norm_eps, place.rotary)
        self.input_norm = place.build_norm()
        self.in_proj = InputProjection(d, [m, m] if gated else [m], place.init(), place.bias)
        self.self_attention = AttentionHeads(d, place.num_heads, place.causal, options)
        self.activation = ACTIVATIONS[GATED.get(place.activation, place.activation)]
        self.out_proj = OutputProjection(d, m, place.init(), place.bias)
        self.dropout = KeyedDropout(place.dropout, dropout_key(place.name, 0))

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """x [B, T, d] -> [B, T, d]."""
        q, k, v, *u = self.in_proj(self.input_norm(x))
        attended = self.self_attention.attend(q, k, v, streams.mask)
        hidden = self.activation(u[0]) * u[1] if len(u) == 2 else self.activation(u[0])
        return x + self.dropout(self.out_proj(attended, hidden), streams.sample_key)
