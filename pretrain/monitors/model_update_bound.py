"""DeepNet's bound on the model update (Wang et al. 2022, arXiv 2203.00555, sections 3.3 and 4): a HEURISTIC.

For x_{l+1} = LN(alpha x_l + G_l(x_l)) the paper bounds ||F(x, theta_t) - F(x, theta_0)|| to first order, for width 1
and matrices that are the numbers v (v_proj, fc1) and w (out_proj, fc2). Here a matrix W counts as rms(W) / xavier_std,
its change as rms(W - W_0) / xavier_std, xavier_std = sqrt(2 / (fan_in + fan_out)), and theta_i is the pair (v_i, w_i).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pretrain.blocks.init import initialise
from pretrain.models.layers import ModelSpec
from pretrain.monitors.blocks import first_layers
from pretrain.monitors.model_update import GROUP, width
from pretrain.monitors.parameter_chunks import Chunk, chunks_of
from pretrain.monitors.probe import Probe
from pretrain.monitors.signals import NOTHING, Part, Profiles, Rows, Signal, stack_depths
from pretrain.parallel import collectives
from pretrain.parallel.engine import Engine, Shard
from pretrain.state.values import number

MATRICES = {
    "self_attention": ("v_proj", "out_proj"),
    "cross_attention": ("v_proj", "out_proj"),
    "ffn": ("fc1", "fc2"),
}
"""v and w of each sublayer."""


class Scales(NamedTuple):
    """Sublayers of a stack as the theorem sees them; each [sublayers], fp64."""

    v: Tensor
    w: Tensor
    change: Tensor
    """||dtheta_i|| = sqrt(dv_i^2 + dw_i^2)"""


def stack_bound(stack: Scales, alpha: float) -> Tensor:
    """sum_i sqrt(v_i^2 + w_i^2) / alpha * ||dtheta_i||: a model of one stack."""
    return ((stack.v**2 + stack.w**2).sqrt() / alpha * stack.change).sum()


def encoder_decoder_bound(encoder: Scales, decoder: Scales, cross: Scales, alpha_e: float, alpha_d: float) -> Tensor:
    """sum_j v_dj w_dj / alpha_d (cross-attentions) * the encoder's bound + the decoder's (all of its sublayers)."""
    return (cross.v * cross.w / alpha_d).sum() * stack_bound(encoder, alpha_e) + stack_bound(decoder, alpha_d)


class ModelUpdateBound(Signal):
    """The bound against the weights that the run began with, with today's v and w; one row.

    Times sqrt(d), so that it stands beside `model_update`: each element of F counts as the theorem's one. Designs of
    another equation, and gated feed-forward networks, have no such figure.

    The first weights are held in main memory, 4 bytes for each of these matrices' elements that the rank owns. A
    resumed session makes them again from the seed; where a run began with other ones (--init-from), it cannot.
    """

    def __init__(self, spec: ModelSpec, seed: int):
        self.spec, self.seed, self.width = spec, seed, width(spec)
        self.alphas, parts = post_norm_stacks(spec)
        depths = stack_depths(spec)
        self.rows = Rows.of({f"{stack}.{part}": depths[stack] for stack in self.alphas for part in parts[stack]})
        self.cells: dict[str, int] = {}
        """Parameter -> its cell in [sublayers, (v, w)]."""
        for stack, names in parts.items():
            for layer in range(depths[stack]):
                for part in names:
                    for index, matrix in enumerate(MATRICES[part]):
                        name = f"{stack}.layers.{layer}.{part}.{matrix}.weight"
                        self.cells[name] = 2 * self.rows.index(f"{stack}.{part}", layer) + index
        self.chunks: list[Chunk] = []
        """The rank's part of the cells."""
        self.scales = torch.zeros(2 * self.rows.total, dtype=torch.float64)
        """Of each cell: 1 / (elements * xavier_std^2) turns a sum of squares into (rms / xavier_std)^2."""
        self.initial: list[Tensor] | None = None
        """First weights of `chunks`, on the CPU."""
        self.initial_norm = math.nan
        """Frobenius norm of all first weights: tells them from others."""

    def start(self, engine: Engine, probe: Probe, step: int) -> str:
        if not self.cells:
            return ""
        # Once: listing them costs a tenth of a step, and they are views of the weights for good.
        shards = [shard for shard in engine.owned_shards() if shard.name in self.cells]
        self.chunks = chunks_of(shards, self.cells.__getitem__)
        for shard in shards:
            fan_out, fan_in = shard.shape
            self.scales[self.cells[shard.name]] = (fan_in + fan_out) / 2 / (fan_in * fan_out)
        if step == 0:
            self.initial = [chunk.weights().cpu() for chunk in self.chunks]
            self.initial_norm = self._norm()
            return ""
        weights = iter(first_weights(self.spec, self.seed, [shard for chunk in self.chunks for shard in chunk.shards]))
        self.initial = [
            chunk.laid_out(next(weights).to(shard.weight.device) for shard in chunk.shards).cpu()
            for chunk in self.chunks
        ]
        if math.isclose(self._norm(), self.initial_norm, rel_tol=1e-6):
            return ""
        self.initial = None
        return "model_update_bound is left out: the run did not begin with its seed's weights, or it is not known"

    def _norm(self) -> float:
        squares = sum(float(weight.double().square().sum()) for weight in self.initial or ())
        return math.sqrt(float(collectives.sum_over(torch.tensor(squares, dtype=torch.float64))))

    def collect(self, engine: Engine) -> Part:
        """[sublayers, (v, w), (of the weights, of their change)]: squares of what the theorem takes."""
        cells = torch.zeros(2 * self.rows.total, 2, dtype=torch.float64)
        if self.initial is None:
            return Part(cells.flatten() + math.nan, NOTHING)
        for chunk, first in zip(self.chunks, self.initial, strict=True):
            weights = chunk.weights()
            of_weights = chunk.squares(weights)
            of_changes = chunk.squares(weights.sub_(first.to(weights.device)))
            cells[chunk.rows] = torch.stack((of_weights, of_changes), -1).cpu()
        return Part((cells * self.scales[:, None]).flatten(), NOTHING)

    def profiles(self, sums: Tensor, maxima: Tensor) -> Profiles:
        if not self.cells:
            return {}
        of_weights, of_changes = sums.view(-1, 2, 2).unbind(-1)  # [sublayers, (v, w)]
        v, w = of_weights.sqrt().unbind(-1)
        whole = Scales(v, w, of_changes.sum(-1).sqrt())

        def of(prefix: str) -> Scales:
            chosen = [range(a, a + n) for group, (a, n) in self.rows.groups.items() if group.startswith(prefix)]
            rows = [row for part in chosen for row in part]
            return Scales(*(values[rows] for values in whole))

        if len(self.alphas) == 1:
            ((stack, alpha),) = self.alphas.items()
            bound = stack_bound(of(f"{stack}."), alpha)
        else:
            parts = of("encoder."), of("decoder."), of("decoder.cross_attention")
            bound = encoder_decoder_bound(*parts, self.alphas["encoder"], self.alphas["decoder"])
        return {"model_update_bound": {GROUP: [math.sqrt(self.width) * float(bound)]}}

    def state_dict(self) -> dict[str, Any]:
        return {"initial_norm": self.initial_norm} if math.isfinite(self.initial_norm) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.initial_norm = number(state.get("initial_norm", math.nan), "initial_norm")


def post_norm_stacks(spec: ModelSpec) -> tuple[dict[str, float], dict[str, list[str]]]:
    """alpha and the sublayers of each stack; both empty where the theorem says nothing of the design."""
    alphas: dict[str, float] = {}
    parts: dict[str, list[str]] = {}
    layers: dict[str, Any] = {**first_layers(spec)}
    for stack, block in layers.items():
        if not block.post_norm or hasattr(block.ffn, "gate"):
            return {}, {}
        alphas[stack], parts[stack] = float(block.alpha), list(block.norms())
    return alphas, parts


def first_weights(spec: ModelSpec, seed: int, shards: Sequence[Shard]) -> list[Tensor]:
    """What the seed gives the elements of these shards of blocks, each flat, on the CPU."""
    of_layer: dict[str, list[Shard]] = {}
    for shard in shards:
        of_layer.setdefault(".".join(shard.name.split(".", 3)[:3]), []).append(shard)
    weights: dict[tuple[str, int], Tensor] = {}
    for layer in spec.layers:
        if layer.name in of_layer:
            module = layer.factory()
            initialise(module, layer.name, seed)
            parameters = {f"{layer.name}.{name}": parameter for name, parameter in module.named_parameters()}
            for shard in of_layer[layer.name]:
                own = parameters[shard.name].detach().flatten()[shard.start : shard.stop]
                weights[shard.name, shard.start] = own.clone()
    return [weights[shard.name, shard.start] for shard in shards]
