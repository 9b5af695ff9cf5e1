"""Whether a folder is a whole checkpoint: one judgement, of `verify` as of everything that loads.

A checkpoint may come from somebody else, with hashes that agree because they were made to. So nothing in it is taken
for granted: every file is a regular one in the folder, every number has its type and range, every parameter is covered
once by pieces that lie inside the files and apart from each other. What passes can be read without a trace, and takes
memory in proportion to its files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pretrain.errors import CheckpointError
from pretrain.state.bounded import MIB, TEXT_BYTES, BadFile, read_bounded
from pretrain.state.bounded_yaml import YAML_BYTES, check_yaml
from pretrain.state.index import MOMENTS, WEIGHT, Index, Piece, overlap
from pretrain.state.manifest import Manifest
from pretrain.state.run_files import CONFIG
from pretrain.state.tensor_file import TensorFile, header_bytes
from pretrain.state.training_state import read_training
from pretrain.state.writer import INDEX, TRAINING

TENSORS = ".safetensors"


class Depth(NamedTuple):
    """How far a judgement goes."""

    files: bool
    """Whether files other than manifest and index are looked at."""
    hashes: bool
    """Whether contents are compared, not only sizes."""
    contents: bool = True
    """Whether what the files say is looked at; 1.1 s at 1000 layers."""


DEPTHS = {
    "hashes": Depth(files=True, hashes=True),
    "sizes": Depth(files=True, hashes=False),
    "nothing": Depth(files=False, hashes=False),
    "presence": Depth(files=True, hashes=False, contents=False),
}


class Judgement:
    """Of one folder; `manifest` and `index` are there once `problems` has gone through and found none.

    "presence" is for lists: it looks at the manifest and the files' sizes, and leaves out the index.

    Args:
        folder: a checkpoint.
        verify: as of `Checkpoint`, or "presence".
        share: (i, n): of the files look only at every n-th from the i-th, so that n ranks divide the reading.
    """

    manifest: Manifest
    index: Index

    def __init__(self, folder: Path, verify: str = "hashes", share: tuple[int, int] = (0, 1)):
        self.folder, self.depth, self.share = folder, DEPTHS[verify], share

    def problems(self) -> Iterator[str]:
        """All that is wrong, one clause each; what rests on something wrong is not looked at."""
        try:
            self.manifest = Manifest.read(self.folder)
        except CheckpointError as error:
            yield str(error).removeprefix(f"{self.folder}: ").removeprefix(f"{self.folder}/")
            return
        whole = True
        finds = [self._of_manifest, self._of_files, self._of_index, self._of_tensors, self._of_texts]
        for find in finds if self.depth.contents else finds[:2]:
            for problem in find():
                whole = False
                yield problem
            if not whole:
                return

    def _of_manifest(self) -> Iterator[str]:
        if not self.manifest.agrees(self.folder):
            yield f"manifest.json is of step {self.manifest.step}, not of the step in the folder's name"
        for name in (INDEX, TRAINING):
            if name not in self.manifest.files:
                yield f"manifest.json knows no {name}"

    def _of_files(self) -> Iterator[str]:
        if self.depth.files:
            yield from self.manifest.problems(self.folder, self.share, self.depth.hashes)

    def _of_index(self) -> Iterator[str]:
        files = [name for name in self.manifest.files if name.endswith(TENSORS)]
        try:
            # A piece takes about as much room in the index as in the header of its file.
            most = MIB + 2 * sum(header_bytes(self.folder / name) for name in files)
            self.index = Index.from_json(read_bounded(self.folder / INDEX, most))
        except BadFile as error:
            yield f"{INDEX}: {error}"
            return
        if unknown := next((piece for piece in self.index if piece.file not in files), None):
            yield f"{INDEX}: {unknown.name} lies in {ascii(unknown.file)[:80]}, which is no tensor file of the manifest"
        if incomplete := self.index.incomplete():
            yield f"{INDEX}: {incomplete[0]} is not covered exactly once by its pieces"

    def _of_tensors(self) -> Iterator[str]:
        """The files' headers against the index."""
        pieces: dict[str, list[Piece]] = {}
        for piece in self.index:
            pieces.setdefault(piece.file, []).append(piece)
        if shared := next((twice for own in pieces.values() if (twice := overlap(own))), None):
            yield f"{INDEX}: {shared.name} shares elements of {shared.file} with another piece"
        if not self.depth.files:
            return
        limit = TEXT_BYTES + 4 * self.manifest.files[INDEX].bytes
        names, (first, stride) = sorted(pieces), self.share
        quantities: dict[tuple[str, ...], str] = {}
        for name in dict.fromkeys([names[0], *names[first::stride]]):  # all must be like the first one
            try:
                file = TensorFile(self.folder / name, limit)
                file.close()
            except CheckpointError as error:
                yield str(error).removeprefix(f"{self.folder}/")
                continue
            lengths = {quantity: file.elements(quantity) for quantity in (WEIGHT, *MOMENTS) if quantity in file}
            length, end = lengths.get(WEIGHT), max(piece.at + piece.numel for piece in pieces[name])
            if length is None or set(lengths.values()) != {length}:
                yield f"{name}: damaged, its buffers are not fp32 numbers of one length"
            elif end > length:
                yield f"{name}: damaged, its buffers end at {length}, the index says {end}"
            quantities.setdefault(tuple(lengths), name)
        if len(quantities) > 1:
            one, other = list(quantities.values())[:2]
            yield f"{one} and {other} hold different quantities"

    def _of_texts(self) -> Iterator[str]:
        """Training state and config, as far as they can be judged without a model."""
        if not self.depth.files:
            return
        looks: dict[str, Callable[[Path], Any]] = {TRAINING: lambda path: read_training(path, self.manifest.step)}
        if CONFIG in self.manifest.files:
            looks[CONFIG] = lambda path: check_yaml(read_bounded(path, YAML_BYTES))
        for name, look in looks.items():
            try:
                look(self.folder / name)
            except BadFile as error:
                yield f"{name}: {error}"
