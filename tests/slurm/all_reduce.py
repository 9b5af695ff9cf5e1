"""One task of a step: meets the others through rank_environment and sums 1 + rank over all of them.

With an argument, rank 0 first takes so many of the ports that it would choose.
"""

import json
import os
import socket
import sys
from contextlib import ExitStack
from datetime import timedelta

import torch
import torch.distributed

from pretrain.launch.environment import rank_environment
from pretrain.launch.meeting import open_door
from pretrain.parallel.process_group import is_host, meet

environment = rank_environment(os.environ)
with ExitStack() as taken:
    door = None
    if is_host(environment):
        for port in environment.ports[: int(sys.argv[1]) if len(sys.argv) > 1 else 0]:
            taken.enter_context(socket.create_server(("127.0.0.1", port)))
        door = open_door(environment)
    store = meet(environment, door, timedelta(seconds=60))
torch.distributed.init_process_group("gloo", store=store, rank=environment.rank, world_size=environment.world_size)
total = torch.tensor([1 + environment.rank])
torch.distributed.all_reduce(total)
torch.distributed.destroy_process_group()
print(json.dumps({"rank": environment.rank, "total": int(total), **vars(environment)}))
