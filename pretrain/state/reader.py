"""Read a checkpoint: whole parameters or any range of them, in any layout."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from pretrain.errors import CheckpointError
from pretrain.state.index import WEIGHT, Box, Index
from pretrain.state.manifest import Manifest
from pretrain.state.writer import INDEX, TRAINING

LATEST = "latest"
PREFIX = "step_"


class Checkpoint:
    """A complete checkpoint, opened for reading.

    Args:
        folder: e.g. runs/demo/checkpoints/step_00000300.
        verify: "hashes" reads every file and compares it, "sizes" is quick, "nothing" trusts.

    Raises:
        CheckpointError: not a checkpoint, or damaged; the message names the file.
    """

    def __init__(self, folder: Path, verify: str = "hashes"):
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        if verify != "nothing":
            problem = self.manifest.damaged(self.folder, hashes=verify == "hashes")
            if problem:
                raise CheckpointError(f"{self.folder}: {problem}")
        self.index = self._read_index()
        self._open_files: dict[str, Any] = {}

    def _read_index(self) -> Index:
        path = self.folder / INDEX
        try:
            index = Index.from_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: damaged ({type(error).__name__}: {error})") from None
        if index.incomplete():
            raise CheckpointError(f"{path}: {index.incomplete()[0]} is not covered exactly once by its pieces")
        return index

    @property
    def step(self) -> int:
        return self.manifest.step

    def training(self) -> dict[str, Any]:
        """Step, data position and callbacks' state, as they were saved."""
        return json.loads((self.folder / TRAINING).read_text(encoding="utf-8"))

    def _file(self, name: str) -> Any:
        if name not in self._open_files:
            self._open_files[name] = safe_open(self.folder / name, "pt")
        return self._open_files[name]

    def has(self, quantity: str) -> bool:
        """Whether the checkpoint holds "weight", "exp_avg" or "exp_avg_sq"."""
        first = next(iter(self.index))
        return quantity in self._file(first.file).keys()  # noqa: SIM118 (a safetensors handle is no mapping)

    def read_into(self, target: Tensor, name: str, start: int, quantity: str = WEIGHT) -> None:
        """Fill `target` (flat, fp32) with elements [start, start + len) of the flattened parameter.

        Only the bytes that are asked for are read. Parameters saved in column or row boxes are put together first.
        """
        stop = start + target.numel()
        for piece in self.index.pieces(name):
            if piece.box != Box.whole(piece.shape):
                target.copy_(self.read(name, quantity).view(-1)[start:stop])
                return
            low, high = max(start, piece.start), min(stop, piece.stop)
            if low < high:
                first = piece.at + low - piece.start
                values = self._file(piece.file).get_slice(quantity)[first : first + high - low]
                target[low - start : high - start].copy_(values)

    def read(self, name: str, quantity: str = WEIGHT) -> Tensor:
        """One whole parameter, fp32, in its global shape."""
        shape = self.index.shape(name)
        whole = torch.empty(shape)
        boxes: dict[Box, Tensor] = {}
        for piece in self.index.pieces(name):
            flat = boxes.setdefault(piece.box, torch.empty(piece.box.numel))
            values = self._file(piece.file).get_slice(quantity)[piece.at : piece.at + piece.numel]
            flat[piece.start : piece.stop].copy_(values)
        for box, flat in boxes.items():
            where = tuple(slice(o, o + s) for o, s in zip(box.offset, box.size, strict=True))
            whole[where] = flat.view(box.size)
        return whole

    def fill(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Copy weights into named parameters (any dtype).

        Raises:
            CheckpointError: a parameter is not in the checkpoint, or has another shape.
        """
        with torch.no_grad():
            for name, parameter in parameters:
                self.expect(name, tuple(parameter.shape))
                parameter.copy_(self.read(name))

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises CheckpointError unless the checkpoint has `name` in this shape."""
        if name not in self.index:
            raise CheckpointError(f"{self.folder}: it has no parameter {name!r}; is it a checkpoint of another model?")
        if self.index.shape(name) != shape:
            saved = list(self.index.shape(name))
            raise CheckpointError(f"{self.folder}: {name} has shape {saved}, the model's is {list(shape)}")


def step_folder(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"{PREFIX}{step:08d}"


def step_of(folder: Path) -> int:
    return int(folder.name[len(PREFIX) :])


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Complete and incomplete step folders, newest first, sorted by number."""
    found = [path for path in checkpoints.glob(f"{PREFIX}*") if path.name[len(PREFIX) :].isdecimal() and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def has_checkpoint(checkpoints: Path) -> bool:
    """Whether the folder holds any step folder with a manifest, good or not."""
    return any((folder / "manifest.json").exists() for folder in list_checkpoints(checkpoints))


def resolve_checkpoint(path: Path) -> Path:
    """A checkpoint folder from what a user typed: itself, or a run's (then its newest complete one).

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path)
    if (path / "manifest.json").is_file():
        return path
    checkpoints = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    for folder in list_checkpoints(checkpoints):
        if (folder / "manifest.json").is_file():
            return folder
    raise CheckpointError(f"{path}: neither a checkpoint nor a run with one; expected RUN/checkpoints/step_NNNNNNNN")
