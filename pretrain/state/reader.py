"""Read a checkpoint: whole parameters or any range of them, in any layout."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.errors import CheckpointError
from pretrain.state.bounded import BadFile
from pretrain.state.files import replace_text
from pretrain.state.index import WEIGHT, Box
from pretrain.state.manifest import NAME as MANIFEST
from pretrain.state.manifest import STEP_PREFIX, Manifest
from pretrain.state.tensor_file import TensorFile
from pretrain.state.training_state import read_training
from pretrain.state.whole import Judgement
from pretrain.state.writer import TRAINING, rank_file

LATEST = "latest"
PREFIX = STEP_PREFIX
DAMAGED = "damaged_"
ROLLED_BACK = "rolled_back_"
MOST_OPEN = 64
"""Files of one checkpoint that are open at a time."""


class Checkpoint:
    """A complete checkpoint, opened for reading.

    Args:
        folder: e.g. runs/demo/checkpoints/step_00000300.
        verify: "hashes" reads every file and compares it, "sizes" is quick, "nothing" looks at manifest and index
            alone.
        share: (i, n): of the files look only at every n-th from the i-th, so that n ranks divide the reading.

    Raises:
        CheckpointError: not a checkpoint, or damaged; the message names the file.
    """

    def __init__(self, folder: Path, verify: str = "hashes", share: tuple[int, int] = (0, 1)):
        self.folder = Path(folder)
        judgement = Judgement(self.folder, verify, share)
        if (problem := next(judgement.problems(), None)) is not None:
            raise CheckpointError(f"{self.folder}: {problem}")
        self.manifest, self.index = judgement.manifest, judgement.index
        self._files: dict[str, TensorFile] = {}
        self._open: list[TensorFile] = []

    @property
    def step(self) -> int:
        return self.manifest.step

    def training(self) -> dict[str, Any]:
        """Step, data position and callbacks' state, as they were saved.

        Raises:
            CheckpointError: damaged.
        """
        try:
            return read_training(self.folder / TRAINING, self.step)
        except BadFile as error:
            raise CheckpointError(f"{self.folder / TRAINING}: {error}") from None

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
        if rank_file(rank) not in self.manifest.files or name not in self._file(rank_file(rank)):
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


def check_name(folder: Path, step: int) -> None:
    """Raises CheckpointError: `folder` is named for another step than the one that is to lie in it."""
    number = folder.name.removeprefix(PREFIX)
    right = step_folder(folder.parent, step).name
    if folder.name.startswith(PREFIX) and number.isdecimal() and folder.name != right:
        raise CheckpointError(f"{folder}: the checkpoint is of step {step}; name the folder {right}, or otherwise")


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


def complete_checkpoints(checkpoints: Path) -> list[Path]:
    """Step folders with a manifest, newest first; none whose manifest is of another step than its name says.

    A manifest that cannot be read counts: the folder has the name of its step, and what is wrong with it will be said.
    """
    return [folder for folder in list_checkpoints(checkpoints) if _is_complete(folder)]


def _is_complete(folder: Path) -> bool:
    try:
        return Manifest.read(folder).agrees(folder)
    except CheckpointError:
        return os.path.lexists(folder / MANIFEST)


def resolve_checkpoint(path: Path) -> Path:
    """A checkpoint folder from what a user typed: itself, or a run's (then its newest complete one).

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path)
    if os.path.lexists(path / MANIFEST):
        return path
    checkpoints = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if found := complete_checkpoints(checkpoints):
        return found[0]
    raise CheckpointError(f"{path}: neither a checkpoint nor a run with one; expected RUN/checkpoints/step_NNNNNNNN")


def point_latest(checkpoints: Path, folder: Path) -> None:
    """Let `latest`, which is for people and other programs, name a checkpoint, whatever is there now.

    Raises:
        OSError: it cannot be written; the checkpoint is none the worse for it.
    """
    latest = checkpoints / LATEST
    if latest.is_dir() and not latest.is_symlink():  # a file does not replace a folder
        aside = latest.with_name(f"{DAMAGED}{LATEST}")
        shutil.rmtree(aside, ignore_errors=True)
        latest.rename(aside)
    replace_text(latest, f"{folder.name}\n")
