"""What every block design shares: where it stands in the model, how the model is set up, and what it reads."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from pretrain.blocks.heads import AttentionOptions
from pretrain.blocks.init import Initialiser, normal, xavier_normal
from pretrain.blocks.norms import BASE_EPS, NORMS


@dataclass(frozen=True)
class BlockPlace:
    """Where a block stands, how large it is, and the model's options that every design takes.

    `encoder_layers` (N) and `decoder_layers` (M) are 0 where the model has no such stack; designs that scale with
    depth, such as DeepNorm, need both. `index` counts from 0 within its stack. The rest is `ModelSection`'s.
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
    norm: str = "layer_norm"
    norm_eps: float = BASE_EPS
    bias: bool = True
    qk_norm: bool = False
    rotary: bool = False
    init_std: float | None = None

    @property
    def name(self) -> str:
        return f"{self.stack}.layers.{self.index}"

    @property
    def causal(self) -> bool:
        return self.stack == "decoder"

    @property
    def cross_attention(self) -> bool:
        return self.stack == "decoder" and self.encoder_layers > 0

    @property
    def depth(self) -> int:
        """Layers of the block's own stack."""
        return self.encoder_layers if self.stack == "encoder" else self.decoder_layers

    def build_norm(self, eps_factor: float = 1.0) -> nn.Module:
        """A norm over hidden_size with eps = eps_factor * norm_eps."""
        return NORMS[self.norm](self.hidden_size, eps_factor * self.norm_eps)

    def init(self, gain: float = 1.0) -> Initialiser:
        """N(0, (gain * init_std)^2), or Xavier with that gain where no init_std is stated."""
        return xavier_normal(gain) if self.init_std is None else normal(gain * self.init_std)

    def attention_options(self, rotary: bool | None = None) -> AttentionOptions:
        qk_norm = self.norm if self.qk_norm else None
        return AttentionOptions(self.bias, qk_norm, self.norm_eps, self.rotary if rotary is None else rotary)


class Streams(NamedTuple):
    """What a block reads beside the residual stream."""

    sample_key: Tensor
    """int64 [B]: keys dropout."""
    mask: Tensor | None = None
    """bool, broadcastable to [B, 1, T, T]: who sees whom in self-attention, complete; None: all (or causal)."""
    memory: Tensor | None = None
    """[B, S, d]: the encoder's output, for cross-attention."""
    memory_mask: Tensor | None = None
    """bool, broadcastable to [B, 1, T, S]: which positions of the memory may be seen."""


class Block(nn.Module, ABC):
    """A transformer layer: one design, built as `Design(config, place)`."""

    final_norm: ClassVar[bool] = False
    """Whether a stack of these blocks ends with a norm of its own."""
    post_norm: ClassVar[bool] = False
    """Whether every sublayer is x_{l+1} = LN(alpha x_l + G_l(x_l)), with that `alpha`."""
    attention_matrices: ClassVar[int] = 4
    """d x d products of its self-attention, for its cost: q, k, v and out."""
    families: ClassVar[frozenset[str]] = frozenset({"decoder", "encoder", "encoder_decoder"})
    """Values of model.family in which the design has a meaning."""

    @classmethod
    def objection(cls, config: Any, model: Any) -> str | None:
        """Why the design has no meaning with these options of the model section: "KEY = VALUE: why; cure", or None."""
        return None

    def norms(self) -> dict[str, nn.Module]:
        """The norms on the residual stream by name, in order: a design calls them NAME_norm, the branch's name first.

        A layer that goes without one that others of its stack have holds an identity in its place.
        """
        return {name.removesuffix("_norm"): part for name, part in self.named_children() if name.endswith("_norm")}

    @abstractmethod
    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """x [B, T, d] -> [B, T, d]."""


def dropout_key(layer_name: str, sublayer: int) -> int:
    """A layer's share of the dropout key: stable over processes and versions."""
    digest = hashlib.blake2b(f"{layer_name}/{sublayer}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
