"""Read a checkpoint: whole parameters or any range of them, in any layout."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.errors import CheckpointError
from pretrain.state.index import WEIGHT, Box, Index
from pretrain.state.manifest import Manifest
from pretrain.state.tensor_file import TensorFile
from pretrain.state.writer import INDEX, TRAINING, rank_file

LATEST = "latest"
PREFIX = "step_"
DAMAGED = "damaged_"
ROLLED_BACK = "rolled_back_"
MOST_OPEN = 64
"""Files of one checkpoint that are open at a time."""


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
        self._files: dict[str, TensorFile] = {}
        self._open: list[TensorFile] = []

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

    def _file(self, name: str) -> TensorFile:
        """A rank's file; the one that was opened longest ago is closed where too many are open."""
        if name not in self._files:
            self._files[name] = TensorFile(self.folder / name)
        file = self._files[name]
        if file not in self._open:
            self._open.append(file)
            if len(self._open) > MOST_OPEN:
                self._open.pop(0).close()
        return file

    def has(self, quantity: str) -> bool:
        """Whether the checkpoint holds "weight", "exp_avg" or "exp_avg_sq"."""
        return quantity in self._file(next(iter(self.index)).file)

    def rank_tensor(self, rank: int, name: str) -> Tensor | None:
        """A small tensor (the generator's state) that `rank` wrote beside its buffers; None where there is none."""
        if not (self.folder / rank_file(rank)).exists() or name not in self._file(rank_file(rank)):
            return None
        return self._file(rank_file(rank)).read(name)

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
                self._file(piece.file).read_into(target[low - start : high - start], quantity, first)

    def read(self, name: str, quantity: str = WEIGHT) -> Tensor:
        """One whole parameter, fp32, in its global shape."""
        shape = self.index.shape(name)
        whole = torch.empty(shape)
        boxes: dict[Box, Tensor] = {}
        for piece in self.index.pieces(name):
            flat = boxes.setdefault(piece.box, torch.empty(piece.box.numel))
            self._file(piece.file).read_into(flat[piece.start : piece.stop], quantity, piece.at)
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
    """Whether the folder holds any step folder, good or not, or one that was set aside: a run that must not start anew.

    A folder appears under its final name only when it is complete, so one that lacks files has lost them.
    """
    return bool(list_checkpoints(checkpoints)) or any(checkpoints.glob(f"{DAMAGED}{PREFIX}*"))


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
