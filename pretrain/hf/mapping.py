"""A name map at work: check that it is complete, build the host's model, fill it tensor by tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pretrain.errors import CheckpointError
from pretrain.hf.hosts import Host
from pretrain.hf.trained import Architecture
from pretrain.hf.transforms import Entry
from pretrain.objectives.tokens import SpecialTokens

Read = Callable[[str], Tensor]


def check_map(entries: Sequence[Entry], ours: Iterable[str], theirs: Iterable[str]) -> None:
    """Every parameter of ours used once, every tensor of the host filled once.

    Args:
        entries: the map.
        ours: canonical names of all parameters.
        theirs: names of all parameters and buffers of the host, tied ones once.

    Raises:
        CheckpointError: names what is left over, missing, or there twice.
    """
    sources = Counter(name for entry in entries if not entry.duplicate for name in entry.sources)
    targets = Counter(entry.target for entry in entries)
    ours, theirs = set(ours), set(theirs)
    problems = (
        ("has no place in the Hugging Face model", ours - sources.keys()),
        ("is mapped and is not in the trained model", sources.keys() - ours),
        ("of the trained model is mapped twice", {name for name, count in sources.items() if count > 1}),
        ("of the Hugging Face model would stay unset", theirs - targets.keys()),
        ("is mapped and is not in the Hugging Face model", targets.keys() - theirs),
        ("of the Hugging Face model is set twice", {name for name, count in targets.items() if count > 1}),
    )
    for problem, names in problems:
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise CheckpointError(f"name map: {min(names)}{more} {problem}; the map of this host is wrong")


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a model by name, tied ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def build(host: Host, architecture: Architecture, tokens: SpecialTokens, dtype: torch.dtype) -> Any:
    """The host's model, its tensors allocated in `dtype` and not set, in evaluation mode."""
    with torch.device("meta"):
        model = host.model_class(host.config(architecture, tokens))
    model = model.to(dtype).to_empty(device="cpu")
    model.tie_weights()  # to_empty gives every tied name a tensor of its own
    model.config.dtype = dtype
    if (generation := host.generation_config(architecture, tokens)) is not None:
        model.generation_config = generation
    return model.eval()


@torch.no_grad()
def fill(model: nn.Module, entries: Sequence[Entry], read: Read, ours: Iterable[str]) -> None:
    """Set every tensor of `model` from ours: transformed in fp64 where there is arithmetic, cast last.

    Args:
        model: the host's, built.
        entries: its map.
        read: gives a parameter of ours by canonical name.
        ours: all canonical names.

    Raises:
        CheckpointError: the map is not complete, or a shape does not fit.
    """
    targets = tensors(model)
    check_map(entries, ours, targets)
    for entry in tqdm(entries, desc="converting", unit="tensor", disable=None, leave=False):
        target = targets[entry.target]
        value = converted(entry, read, tuple(target.shape))
        target.copy_(value)


def converted(entry: Entry, read: Read, shape: tuple[int, ...]) -> Tensor:
    """What the host's tensor of `shape` must hold, before the cast to the host's dtype."""
    value = entry.apply(read, shape)
    if tuple(value.shape) != shape:
        raise CheckpointError(
            f"name map: {' + '.join(entry.sources)} becomes shape {list(value.shape)}, and {entry.target} has "
            f"{list(shape)}"
        )
    return value


def built_and_filled(
    host: Host, architecture: Architecture, tokens: SpecialTokens, dtype: torch.dtype, read: Read, ours: Iterable[str]
) -> Any:
    """`build`, then `fill`."""
    model = build(host, architecture, tokens, dtype)
    fill(model, list(host.entries(architecture)), read, ours)
    return model
