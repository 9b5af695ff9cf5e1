"""Training in a layout that computes something wrong."""

from __future__ import annotations

import torch
from harness import train_main


def train_wrongly(rank, argv, fault):
    from pretrain.parallel.partitioned import PartitionedEngine
    from pretrain.parallel.zero_engine import ZeroEngine

    engine = PartitionedEngine if "parallel.zero_stage=3" in argv else ZeroEngine
    attach = engine.attach

    def attach_wrongly(self, deepspeed):
        attach(self, deepspeed)
        optimizer = deepspeed.optimizer
        if fault == "clipping":
            optimizer.get_grad_norm_direct = lambda gradients, params, norm_type=2: gradients[0].norm()
        elif fault == "gradient" and rank == 1:
            gather = optimizer.reduce_gradients

            def doubled(pipeline_parallel=False):
                gather(pipeline_parallel)
                for gradients in optimizer.averaged_gradients.values():
                    for gradient in gradients:
                        gradient.mul_(2)

            optimizer.reduce_gradients = doubled
        elif fault == "update" and rank == 0:
            step = optimizer.step

            def without_effect(*args, **kwargs):
                weights = [parameter.detach() for parameter in self.layers.parameters()]
                kept = [weight.clone() for weight in weights]
                step(*args, **kwargs)
                torch._foreach_copy_(weights, kept)

            optimizer.step = without_effect

    engine.attach = attach_wrongly
    return train_main(rank, argv)


def resume_with_stale_weights(rank, argv):
    """The masters are restored, what the forward pass uses is scaled."""
    from pretrain.parallel.zero_engine import ZeroEngine

    publish = ZeroEngine.publish_weights

    def publish_wrongly(self):
        for shard in self.owned_shards(replicas=True):
            shard.weight.mul_(1.1)
        publish(self)

    ZeroEngine.publish_weights = publish_wrongly
    return train_main(rank, argv)


def resume_with_other_data(rank, argv):
    """The data position is one sample further than it was."""
    from pretrain.data.loader import BatchLoader

    load = BatchLoader.load_state_dict

    def load_wrongly(self, state):
        load(self, state)
        self._position += 1

    BatchLoader.load_state_dict = load_wrongly
    return train_main(rank, argv)
