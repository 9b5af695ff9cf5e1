"""What DeepSpeed calls our parameters: `named_parameters()` of the module that was given to `deepspeed.initialize`.

prefix     P + NAME              a module that holds the LayerList as an attribute ("layers." in pretrain.parallel)
stages     layers.NAME           our pipeline engine; shared weights are tied_modules.KEY.REST
indexed    INDEX.REST            DeepSpeed's PipelineModule over the list of layers; shared ones as above
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from pretrain.config.schema import Experiment
from pretrain.errors import CheckpointError
from pretrain.models.layers import ModelSpec
from pretrain.models.registry import FAMILIES

PREFIX, STAGES, INDEXED = "prefix", "stages", "indexed"
NAMINGS = (PREFIX, STAGES, INDEXED)
PLAIN_ENGINE = "layers."
TIED = "tied_modules."


def spec_of(experiment: Experiment, pieces: int, objective: object) -> ModelSpec:
    """The experiment's layers for a tokenizer of so many pieces."""
    multiple = experiment.data.pad_vocab_to
    lengths = objective.source_length, objective.target_length  # type: ignore[attr-defined]
    segmented = objective.segmented  # type: ignore[attr-defined]
    family = FAMILIES[experiment.model.family]
    return family(experiment.model, -(-pieces // multiple) * multiple, *lengths, segmented=segmented)


def natural_order(name: str) -> list[tuple[int, str]]:
    """A sort key under which layer 2 comes before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]


def deepspeed_names(names: Iterable[str], naming: str, prefix: str, spec: ModelSpec | None) -> dict[str, str]:
    """Canonical name -> DeepSpeed's.

    Args:
        names: canonical.
        naming: one of NAMINGS.
        prefix: put before a name; not used by INDEXED.
        spec: the model; not needed by PREFIX.
    """
    if naming == PREFIX or spec is None:
        return {name: prefix + name for name in names}
    owner = {f"{key}.": f"{TIED}{key}." for key in spec.shared}
    if naming == INDEXED:
        owner |= {f"{layer.name}.": f"{index}." for index, layer in enumerate(spec.layers)}
    return {name: _renamed(name, owner, prefix) for name in names}


def _renamed(name: str, owner: dict[str, str], prefix: str) -> str:
    end = name.rfind(".")
    while end > 0:
        if (head := name[: end + 1]) in owner:
            return owner[head] + name[end + 1 :]
        end = name.rfind(".", 0, end)
    return prefix + name


def canonical_names(given: Collection[str], ours: Sequence[str], spec: ModelSpec, prefix: str | None) -> dict[str, str]:
    """Canonical name -> which of the `given` names it is, in the order of `ours`, for the naming that fits best.

    Args:
        given: DeepSpeed's names.
        ours: canonical names of every parameter of the model.
        spec: the model.
        prefix: the only one to look for; default: whatever stands before a canonical name.

    Raises:
        CheckpointError: a clause, where a parameter of the model is missing or a given one is not of the model.
    """
    found = dict.fromkeys(name.removesuffix(ours[-1]) for name in given if name.endswith(ours[-1]))
    prefixes = [prefix] if prefix is not None else ["", PLAIN_ENGINE, *(p for p in found if not p or p.endswith("."))]
    candidates = [deepspeed_names(ours, naming, p, spec) for p in dict.fromkeys(prefixes) for naming in NAMINGS]
    known = set(given)
    best = max(candidates, key=lambda names: len(known.intersection(names.values())))
    missing = [name for name, theirs in best.items() if theirs not in known]
    if missing:
        raise CheckpointError(
            f"it has no {best[missing[0]]} (for {missing[0]}{_and_more(missing)}); is it of another model, or are its "
            "names behind another --prefix?"
        )
    if left := sorted(known.difference(best.values()), key=natural_order):
        raise CheckpointError(f"{left[0]}{_and_more(left)} is no parameter of the model; is it of another one?")
    return best


def stripped_names(given: Collection[str], prefix: str | None) -> dict[str, str]:
    """Canonical name -> given one where the model is not known.

    Args:
        given: DeepSpeed's names.
        prefix: taken off; default: what all of them begin with, up to a dot. A model of ours has an embedding and a
            stack, which begin differently, so that it is no part of a canonical name.

    Raises:
        CheckpointError: a clause, where the names say nothing without the model.
    """
    inside = [name for name in given if not name.startswith(TIED)]
    if prefix is None:
        first, last = min(inside), max(inside)
        shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
        prefix = first[: first.rfind(".", 0, shared) + 1]
    elif other := next((name for name in inside if not name.startswith(prefix)), None):
        raise CheckpointError(f"{other} does not begin with --prefix {prefix}")
    ours = {
        name.removeprefix(TIED) if name.startswith(TIED) else name.removeprefix(prefix): name
        for name in sorted(given, key=natural_order)
    }
    if numbered := next((name for name in ours if re.match(r"\d+\.", name)), None):
        raise CheckpointError(f"{numbered} is named by its layer's number; say of which model with --recipe")
    if len(ours) < len(given):
        raise CheckpointError("a shared weight stands there under two names; say of which model with --recipe")
    return ours


def _and_more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1:,} more" if len(names) > 1 else ""
