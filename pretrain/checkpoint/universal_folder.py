"""DeepSpeed's universal checkpoint as it lies on the disk. Source: deepspeed/checkpoint/ds_to_universal.py (0.19.8).

    OUT/latest_universal                        one line: TAG; what `engine.load_checkpoint(OUT)` looks for
    OUT/TAG/zero/NAME/{fp32,exp_avg,exp_avg_sq}.pt      {"param": the whole tensor}; a bare flat tensor from ZeRO-3
    OUT/TAG/zero/NAME/step.pt                   updates that the optimizer has made; not there from ZeRO-3
    OUT/TAG/zero/optimizer_state.pt             param_groups and the loss scaler
    OUT/TAG/mp_rank_00_model_states.pt          counters; zero_pp_rank_0_mp_rank_00_model_states.pt for ZeRO-3

The files are pickles. They are loaded with weights_only=True, which runs no code of theirs.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoint.universal_names import natural_order
from pretrain.errors import CheckpointError
from pretrain.state.bounded import BadFile, read_bounded
from pretrain.state.index import MOMENTS, WEIGHT
from pretrain.state.values import MOST

LATEST_UNIVERSAL = "latest_universal"
ZERO = "zero"
OWN = "kilolayer"
"""Folder beside zero/ with what DeepSpeed has no place for: config, tokenizer, training state."""
STEP = "step.pt"
PARAM = "param"
FILES = {WEIGHT: "fp32.pt", **{moment: f"{moment}.pt" for moment in MOMENTS}}
MODEL_STATES = "mp_rank_00_model_states.pt"
MODEL_STATES_ZERO3 = f"zero_pp_rank_0_{MODEL_STATES}"
OPTIMIZER_STATE = "optimizer_state.pt"


def load_safely(path: Path, mmap: bool = False) -> Any:
    """What a .pt file holds, as long as it is tensors and plain values.

    Raises:
        CheckpointError: it is missing or damaged, or its pickle wants to build other objects.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing") from None
    except (OSError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        if wanted := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{path}: its pickle wants {wanted[1]}, which could run code; only tensors and plain values are read"
            ) from None
        raise CheckpointError(f"{path}: damaged ({_first_line(error)})") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(f"{path}: damaged ({type(error).__name__}: {_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


class UniversalFolder:
    """A universal checkpoint, opened for reading.

    Args:
        path: the folder that holds zero/, or one with latest_universal.

    Raises:
        CheckpointError: neither, or a parameter's file is missing.
    """

    def __init__(self, path: Path):
        self.folder = _resolve(Path(path))
        self.zero = self.folder / ZERO
        self.names = sorted((entry.name for entry in self.zero.iterdir() if entry.is_dir()), key=natural_order)
        if not self.names:
            raise CheckpointError(f"{self.zero}: it has no parameters")
        self.has_moments = self._all_or_none()
        self._shapes: dict[str, tuple[int, ...]] | None = None

    def _all_or_none(self) -> bool:
        """Whether the moments are there, for every parameter."""
        without: list[Path] = []
        for name in self.names:
            if not (self.zero / name / FILES[WEIGHT]).is_file():
                raise CheckpointError(f"{self.zero / name / FILES[WEIGHT]}: is missing")
            lacking = [path for moment in MOMENTS if not (path := self.zero / name / FILES[moment]).is_file()]
            without += lacking
        if without and len(without) < len(MOMENTS) * len(self.names):
            raise CheckpointError(
                f"{without[0]}: is missing, other parameters have one; --weights-only leaves out the moments of all"
            )
        return not without

    def tensor(self, name: str, quantity: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """One whole parameter or moment in fp32.

        Args:
            name: DeepSpeed's.
            quantity: "weight", "exp_avg" or "exp_avg_sq".
            shape: what it should have; ZeRO-3 leaves it flat. None: as saved.

        Raises:
            CheckpointError: missing, damaged, unsafe, or of another shape.
        """
        path = self.zero / name / FILES[quantity]
        found = load_safely(path)
        value = found.get(PARAM) if isinstance(found, dict) else found
        if not isinstance(value, Tensor) or value.layout != torch.strided or not value.is_floating_point():
            raise CheckpointError(f"{path}: damaged, it holds no tensor of numbers")
        if shape is not None and tuple(value.shape) != shape:
            if isinstance(found, dict) or value.dim() != 1 or value.numel() != torch.Size(shape).numel():
                raise CheckpointError(f"{path}: has shape {list(value.shape)} instead of {list(shape)}")
            value = value.view(shape)
        return value.to(torch.float32)

    def shape_from(self, name: str) -> tuple[int, ...] | None:
        """The shape that ZeRO-3's model states name, where tensors are flat; None where they say nothing."""
        if self._shapes is None:
            self._shapes = {}
            if (self.folder / MODEL_STATES_ZERO3).is_file():
                groups = self.model_states().get("param_shapes") or []
                groups = groups if isinstance(groups, list) else [groups]
                for group in groups:
                    if not isinstance(group, dict):
                        raise CheckpointError(f"{self.folder / MODEL_STATES_ZERO3}: damaged, its param_shapes")
                    self._shapes |= {key: tuple(size) for key, size in group.items()}
        return self._shapes.get(name)

    def step(self, name: str) -> int | None:
        """Updates that the optimizer has made on a parameter; None where no file says so.

        Raises:
            CheckpointError: the file is damaged or unsafe.
        """
        path = self.zero / name / STEP
        if not path.is_file():
            return None
        value = load_safely(path)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if not isinstance(value, (int, float)) or not 0 <= value <= MOST or value != int(value):
            raise CheckpointError(f"{path}: damaged, it holds no number of steps")
        return int(value)

    def model_states(self) -> dict[str, Any]:
        """The counters beside zero/; tensors in it are mapped, not read.

        Raises:
            CheckpointError: there are none, or they hold other objects.
        """
        found = sorted(self.folder.glob("*mp_rank_*_model_states.pt"))
        if not found:
            raise CheckpointError(f"{self.folder / MODEL_STATES}: is missing")
        states = load_safely(found[0], mmap=True)
        if not isinstance(states, dict):
            raise CheckpointError(f"{found[0]}: damaged, it holds no counters")
        return states


def _resolve(path: Path) -> Path:
    if (path / ZERO).is_dir():
        return path
    latest = path / LATEST_UNIVERSAL
    if latest.is_file():
        try:
            tag = read_bounded(latest, follow=True).decode(errors="replace").strip()
        except BadFile as error:
            raise CheckpointError(f"{latest}: {error}; give the folder that has {ZERO}/") from None
        if tag == Path(tag).name and (path / tag / ZERO).is_dir():
            return path / tag
        raise CheckpointError(f"{latest}: names {tag[:80]!r}, which has no {ZERO}/; give the folder that has one")
    if any(path.glob("*optim_states.pt")) or any(path.glob("*/*optim_states.pt")):
        raise CheckpointError(
            f"{path}: a checkpoint of DeepSpeed's own layout; convert it first: python -m "
            f"deepspeed.checkpoint.ds_to_universal --input_folder {path} --output_folder {path}_universal "
            "--inject_missing_state"
        )
    raise CheckpointError(f"{path}: not a universal checkpoint of DeepSpeed (it has no {ZERO}/ and no {latest.name})")
