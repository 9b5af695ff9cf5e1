"""SAS, the simplified block of He & Hofmann (2023, arXiv 2311.01906, figure 9): no attention skip, no W_V and W_P."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from pretrain.blocks.base import Block, BlockPlace, Streams, dropout_key
from pretrain.blocks.dropout import KeyedDropout
from pretrain.blocks.gain import Gain
from pretrain.blocks.mlp import feed_forward
from pretrain.blocks.registry import BLOCKS
from pretrain.blocks.shaped_attention import ShapedAttention, weight_init
from pretrain.blocks.weighted_sum import weighted_sum
from pretrain.registry import Section


class SimplifiedConfig(Section):
    """What the paper's blocks have in common."""

    norm: bool = True
    """Norms in every layer; false: only layer 0 has one, before its attention. The final norm stays in either case."""
    ffn_gain: Annotated[float, Field(gt=0)] | None = None
    """Weight of the MLP's branch at the start, b_FF; null: 0.1 sqrt(18 / layers), the paper's 0.1 at 18 layers."""


class SASConfig(SimplifiedConfig):
    """SAS: shaped attention without skip, values and projection, then the MLP; biases on q and k alone.

    Weights start with standard deviation 0.02 if model.init_std does not say otherwise, W_Q at 0. The paper has
    model.norm=rms_norm and model.activation=relu.
    """

    kind: Literal["sas"] = "sas"


class SimplifiedBlock(Block):
    """Shaped attention carries the stream, the MLP adds to it; dropout falls on the MLP's branch alone.

    Args:
        attention: a module of (y, mask, gain).
    """

    final_norm = True
    families = frozenset({"decoder", "encoder"})

    def __init__(self, config: SimplifiedConfig, place: BlockPlace, attention: nn.Module):
        super().__init__()
        gain = 0.1 * (18 / place.depth) ** 0.5 if config.ffn_gain is None else config.ffn_gain
        self.self_attention = attention
        self.self_attention_gain = Gain(1.0)
        self.ffn = feed_forward(place.hidden_size, place.ffn_size, place.activation, weight_init(place), bias=False)
        self.ffn_gain = Gain(gain)
        self.ffn_dropout = KeyedDropout(place.dropout, dropout_key(place.name, 1))


class SkiplessBlock(SimplifiedBlock):
    """X^ = b_SA Attn(N(X)); out = a_FF X^ + b_FF MLP(N(X^)), all factors learned."""

    def __init__(self, config: SimplifiedConfig, place: BlockPlace, attention: nn.Module):
        super().__init__(config, place, attention)
        self.self_attention_norm = place.build_norm() if config.norm or place.index == 0 else nn.Identity()
        self.ffn_norm = place.build_norm() if config.norm else nn.Identity()
        self.ffn_skip_gain = Gain(1.0)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """x [B, T, d] -> [B, T, d]."""
        x = self.self_attention(self.self_attention_norm(x), streams.mask, self.self_attention_gain.weight)
        branch = self.ffn_dropout(self.ffn(self.ffn_norm(x)), streams.sample_key)
        return weighted_sum((self.ffn_skip_gain.weight, x), (self.ffn_gain.weight, branch))


def refuse_qk_norm(config: Any, model: Any) -> str | None:
    """The objection of blocks with W_Q = 0: a norm of q = 0 has a gradient of 1/sqrt(eps), and undoes the start."""
    if not model.qk_norm:
        return None
    return (
        f"model.qk_norm = true does not go with model.block.kind = {config.kind}, whose W_Q = 0 leaves nothing to "
        "normalise at the start; set model.qk_norm=false"
    )


@BLOCKS.register(SASConfig)
class SASBlock(SkiplessBlock):
    """The equation of SkiplessBlock with shaped attention."""

    attention_matrices = 2  # q and k

    @classmethod
    def objection(cls, config: Any, model: Any) -> str | None:
        return refuse_qk_norm(config, model)

    def __init__(self, config: SASConfig, place: BlockPlace):
        super().__init__(config, place, ShapedAttention(place))
