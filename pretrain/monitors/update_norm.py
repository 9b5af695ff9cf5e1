"""L2 norm of one optimizer step's change of each layer's parameters: ||theta_t - theta_{t-1}||."""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.models.layers import ModelSpec
from pretrain.models.parameters import row_group
from pretrain.monitors.signals import NOTHING, Part, Profiles, Rows, Signal, stack_depths
from pretrain.parallel.engine import Engine


class UpdateNorm(Signal):
    """A row a layer, and one for the embeddings and each final norm. From the fp32 masters that each rank owns."""

    def __init__(self, spec: ModelSpec):
        self.rows = Rows.of(stack_depths(spec))

    def before_step(self, engine: Engine) -> None:
        shards = list(engine.owned_shards())
        self.weights = [shard.weight for shard in shards]
        self.row_of = torch.tensor([self.rows.index(*row_group(shard.name)) for shard in shards])
        self.before = torch._foreach_mul(self.weights, 1.0)  # one copy of each, in one call

    def collect(self, engine: Engine) -> Part:
        torch._foreach_sub_(self.before, self.weights)
        norms = torch.stack(torch._foreach_norm(self.before, dtype=torch.float64)).cpu()
        self.before = ()
        squares = torch.zeros(self.rows.total, dtype=torch.float64).index_add_(0, self.row_of, norms.square())
        return Part(squares, NOTHING)

    def profiles(self, sums: Tensor, maxima: Tensor) -> Profiles:
        return {"update_norm": self.rows.split(sums.sqrt())}
