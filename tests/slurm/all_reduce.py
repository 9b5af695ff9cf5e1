"""One task of a step: meets the others through rank_environment and sums 1 + rank over all of them."""

import json
import os

import torch
import torch.distributed

from pretrain.launch.environment import export, rank_environment

environment = rank_environment(os.environ)
os.environ.update(export(environment))
torch.distributed.init_process_group("gloo")
total = torch.tensor([1 + environment.rank])
torch.distributed.all_reduce(total)
torch.distributed.destroy_process_group()
print(json.dumps({"rank": environment.rank, "total": int(total), **vars(environment)}))
