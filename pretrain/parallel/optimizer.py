"""AdamW over parameter groups, as the experiment states it."""

from __future__ import annotations

import torch
from torch import nn

from pretrain.config.schema import OptimizerSection
from pretrain.models.parameters import parameter_roles


def adamw(module: nn.Module, config: OptimizerSection) -> torch.optim.AdamW:
    """torch.optim.AdamW with a decaying and a non-decaying group (an empty group is left out).

    Fused: DeepSpeed hands it one flat tensor a group, and one pass over memory is what it costs.
    """
    roles = parameter_roles(module)
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in module.named_parameters():
        groups[roles[name] not in config.no_decay].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": config.weight_decay if decays else 0.0}
            for decays, parameters in groups.items()
            if parameters
        ],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )
