"""DeepNorm (Wang et al. 2022, arXiv 2203.00555): x_{l+1} = LN(alpha * x_l + G_l(x_l))."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from pretrain.blocks.base import BlockPlace
from pretrain.blocks.registry import BLOCKS
from pretrain.blocks.sequential import Branch, SequentialBlock
from pretrain.registry import Section


class DeepNormConfig(Section):
    """DeepNorm: alpha and beta follow from the depths, encoder and decoder apart."""

    kind: Literal["deepnorm"] = "deepnorm"


def deepnorm_constants(stack: str, encoder_layers: int, decoder_layers: int) -> tuple[float, float]:
    """(alpha, beta) of one stack: the table of section 3 with its rounded constants 0.81 and 0.87.

    Args:
        stack: "encoder" or "decoder".
        encoder_layers: N, 0 where there is no encoder.
        decoder_layers: M, 0 where there is no decoder.
    """
    N, M = encoder_layers, decoder_layers
    if stack == "encoder" and M > 0:
        return 0.81 * (N**4 * M) ** (1 / 16), 0.87 * (N**4 * M) ** (-1 / 16)
    if stack == "decoder" and N > 0:
        return (3 * M) ** (1 / 4), (12 * M) ** (-1 / 4)
    depth = N if stack == "encoder" else M
    return (2 * depth) ** (1 / 4), (8 * depth) ** (-1 / 4)


@BLOCKS.register(DeepNormConfig)
class DeepNormBlock(SequentialBlock):
    """Xavier with gain beta on v_proj, out_proj and both FFN matrices, gain 1 on q_proj and k_proj.

    The norms' eps is alpha^2 * model.norm_eps: then LN(alpha x + G(x)) with it equals LN(x + G(x) / alpha) with
    model.norm_eps, so dividing the output projections by alpha turns the model into a plain Post-LN one, exactly.
    """

    post_norm = True

    @classmethod
    def objection(cls, config: Any, model: Any) -> str | None:
        if model.init_std is None:
            return None
        return (
            f"model.init_std = {model.init_std} does not go with model.block.kind = {config.kind}, whose gains are "
            "Xavier's times beta; set model.init_std=null"
        )

    def __init__(self, config: DeepNormConfig, place: BlockPlace):
        alpha, beta = self.constants(place)
        super().__init__(place, branch_init=place.init(gain=beta), eps_factor=alpha**2)
        self.alpha = alpha

    @staticmethod
    def constants(place: BlockPlace) -> tuple[float, float]:
        """(alpha, beta) of the block's stack."""
        return deepnorm_constants(place.stack, place.encoder_layers, place.decoder_layers)

    def sublayer(self, x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
        return norm(torch.add(branch(x), x, alpha=self.alpha))  # alpha x + G(x), in one pass
