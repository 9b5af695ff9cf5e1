"""The few collectives the rest of the project uses. Each is a no-op in one process."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch import distributed as dist

from pretrain.errors import UserError


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this is the rank that prints, logs and writes what all share."""
    return rank() == 0


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def device() -> torch.device:
    """Where tensors of collectives live: this rank's GPU under NCCL, else the CPU."""
    if dist.is_initialized() and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def sum_over(values: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Element-wise sum over the group (default: all ranks); returned on the CPU."""
    if world_size() == 1:
        return values
    moved = values.to(device(), copy=True)  # the reduction is in place
    dist.all_reduce(moved, group=group)
    return moved.cpu()


def max_over(values: Tensor) -> Tensor:
    """Element-wise maximum over all ranks; returned on the CPU."""
    if world_size() == 1:
        return values
    moved = values.to(device(), copy=True)
    dist.all_reduce(moved, op=dist.ReduceOp.MAX)
    return moved.cpu()


def agree_any(flag: bool) -> bool:
    """True on every rank if it is True on any."""
    return bool(max_over(torch.tensor([int(flag)])).item())


def gather_rows(row: Tensor) -> Tensor:
    """[n] on each rank -> [world, n] on every rank, int64 or floating, on the CPU."""
    rows = torch.zeros(world_size(), row.numel(), dtype=row.dtype)
    rows[rank()] = row.cpu()
    return sum_over(rows)


def share_text(text: str, source: int = 0) -> str:
    """The text of rank `source` on every rank."""
    if world_size() == 1:
        return text
    own = rank() == source
    data = torch.tensor(list(text.encode()) if own else [], dtype=torch.int64)
    length = int(sum_over(torch.tensor([data.numel()])))
    return bytes(sum_over(data if own else torch.zeros(length, dtype=torch.int64)).tolist()).decode()


def first_text(text: str) -> str:
    """On every rank, the text of the lowest rank whose text is not empty; empty if all are."""
    holder = int(-max_over(torch.tensor([-rank() if text else -world_size()])).item())
    return share_text(text, holder) if holder < world_size() else ""


def on_first(action: Callable[[], None], failed: Callable[[str], Exception]) -> None:
    """Run `action` on rank 0; if the disk or the user fails it there, raise `failed(its words)` on every rank.

    Collective.
    """
    problem = ""
    if is_first():
        try:
            action()
        except (OSError, UserError) as error:
            problem = str(error)
    if reason := first_text(problem):
        raise failed(reason)
