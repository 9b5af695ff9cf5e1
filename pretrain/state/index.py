"""Where each parameter's elements lie: name -> global shape and the pieces that make it up.

A checkpoint is a folder:

    manifest.json               format, step, layout, and every other file's size and SHA-256
    index.json                  this module's Index
    training.json               step, data position, callbacks' state
    config.yaml, tokenizer.model
    rank_00000.safetensors ...  flat fp32 buffers "weight", "exp_avg", "exp_avg_sq" of what each rank owned

A piece is a flat range of a box (an axis-aligned part of the parameter), so that ZeRO shards (ranges of the whole)
and tensor-parallel shards (ranges of a column or row box) are said in the same words.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Box:
    """An axis-aligned part of a tensor: first element and extent in every dimension."""

    offset: tuple[int, ...]
    size: tuple[int, ...]

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Box:
        return cls((0,) * len(shape), shape)

    @property
    def numel(self) -> int:
        return math.prod(self.size)


@dataclass(frozen=True)
class Piece:
    """Elements [start, stop) of a box of parameter `name`, flattened in row-major order.

    They lie at [at, at + stop - start) of the flat buffers of `file`.
    """

    name: str
    shape: tuple[int, ...]
    box: Box
    start: int
    stop: int
    at: int
    file: str = ""

    @property
    def numel(self) -> int:
        return self.stop - self.start

    def to_json(self) -> dict[str, Any]:
        entry: dict[str, Any] = {"file": self.file, "range": [self.start, self.stop], "at": self.at}
        if self.box != Box.whole(self.shape):
            entry["box"] = {"offset": list(self.box.offset), "size": list(self.box.size)}
        return entry

    @classmethod
    def from_json(cls, name: str, shape: tuple[int, ...], entry: dict[str, Any]) -> Piece:
        box = Box.whole(shape)
        if "box" in entry:
            box = Box(tuple(entry["box"]["offset"]), tuple(entry["box"]["size"]))
        start, stop = entry["range"]
        return cls(name, shape, box, start, stop, entry["at"], entry["file"])


class Index:
    """All pieces of a checkpoint, by parameter name in the order of the model's layers."""

    def __init__(self, pieces: Iterable[Piece]):
        self._pieces: dict[str, list[Piece]] = {}
        for piece in pieces:
            self._pieces.setdefault(piece.name, []).append(piece)

    def names(self) -> list[str]:
        return list(self._pieces)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._pieces[name][0].shape

    def pieces(self, name: str) -> list[Piece]:
        return self._pieces[name]

    def __contains__(self, name: str) -> bool:
        return name in self._pieces

    def __iter__(self) -> Iterator[Piece]:
        for pieces in self._pieces.values():
            yield from pieces

    def incomplete(self) -> list[str]:
        """Names whose pieces do not cover every element exactly once."""
        return [name for name, pieces in self._pieces.items() if not _covers(pieces)]

    def to_json(self) -> str:
        tensors = {
            name: {"shape": list(pieces[0].shape), "pieces": [piece.to_json() for piece in pieces]}
            for name, pieces in self._pieces.items()
        }
        return json.dumps({"tensors": tensors}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Index:
        tensors = json.loads(text)["tensors"]
        return cls(
            Piece.from_json(name, tuple(entry["shape"]), piece)
            for name, entry in tensors.items()
            for piece in entry["pieces"]
        )


def _covers(pieces: list[Piece]) -> bool:
    """Whether the pieces tile the tensor: within each box the ranges abut, and the boxes' volumes add up."""
    by_box: dict[Box, list[Piece]] = {}
    for piece in pieces:
        by_box.setdefault(piece.box, []).append(piece)
    for box, parts in by_box.items():
        end = 0
        for part in sorted(parts, key=lambda part: part.start):
            if part.start != end:
                return False
            end = part.stop
        if end != box.numel:
            return False
    shape, boxes = pieces[0].shape, list(by_box)
    inside = all(
        o >= 0 and o + s <= extent for box in boxes for o, s, extent in zip(box.offset, box.size, shape, strict=True)
    )
    apart = not any(_overlap(a, b) for a, b in itertools.combinations(boxes, 2))
    return inside and apart and sum(box.numel for box in boxes) == math.prod(shape)


def _overlap(a: Box, b: Box) -> bool:
    return all(max(p, q) < min(p + m, q + n) for p, m, q, n in zip(a.offset, a.size, b.offset, b.size, strict=True))
