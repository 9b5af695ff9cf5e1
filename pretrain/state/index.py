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
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pretrain.state.bounded import BadFile, parse_json
from pretrain.state.values import MOST, count, mapping, sequence

MOST_DIMENSIONS = 8
"""Of a parameter. A box has two to the power of its dimensions corners."""
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
        """Raises ValueError, LookupError or TypeError: the entry has another form, or lies outside of the parameter."""
        box = Box.whole(shape)
        if "box" in entry:
            box = Box(extent(entry["box"]["offset"], "offset"), extent(entry["box"]["size"], "size"))
            if len(box.offset) != len(shape) or len(box.size) != len(shape):
                raise ValueError("a box has other dimensions than its parameter")
            if any(o + s > most for o, s, most in zip(box.offset, box.size, shape, strict=True)):
                raise ValueError("a box lies outside of its parameter")
        start, stop = entry["range"]
        at, file = entry["at"], entry["file"]
        if not (type(start) is type(stop) is type(at) is int and 0 <= start <= stop <= box.numel and 0 <= at <= MOST):
            raise ValueError(f"a piece is {ascii(entry['range'])[:80]} at {ascii(at)[:80]}")
        if not isinstance(file, str):
            raise ValueError("a piece names no file")
        return cls(name, shape, box, start, stop, at, file)


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
    def from_json(cls, content: str | bytes) -> Index:
        """The index that its file holds. That its pieces cover every parameter is for `incomplete` to say.

        Raises:
            BadFile: it has another form: a parameter without pieces, a number that is none or out of range.
        """
        value = parse_json(content.encode() if isinstance(content, str) else content)
        name = ""
        try:
            tensors = mapping(mapping(value, "it")["tensors"], "tensors")
            pieces = []
            for name, entry in tensors.items():
                if not name or not name.isprintable():
                    raise ValueError("its name cannot be printed")
                shape, own = extent(entry["shape"], "shape"), sequence(entry["pieces"], "pieces")
                if not own:
                    raise ValueError("it has no pieces")
                pieces += [Piece.from_json(name, shape, piece) for piece in own]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            what = f"{error} is not there" if isinstance(error, LookupError) else str(error)
            raise BadFile(f"damaged ({ascii(name)[1:-1][:200]}{': ' if name else ''}{what})") from None
        if not pieces:
            raise BadFile("damaged (it names no parameter)")
        return cls(pieces)


def extent(value: Any, what: str) -> tuple[int, ...]:
    """A shape or an offset, from JSON; raises ValueError unless it is a list of few counts."""
    numbers = tuple(count(item, what) for item in sequence(value, what))
    if len(numbers) > MOST_DIMENSIONS:
        raise ValueError(f"{what} has more than {MOST_DIMENSIONS} dimensions")
    if math.prod(filter(None, numbers)) > MOST:  # also where another extent is 0: torch computes strides
        raise ValueError(f"{what} is too large")
    return numbers


def overlap(pieces: Iterable[Piece]) -> Piece | None:
    """A piece of one file that shares elements of the file's buffers with another one; None if there is none."""
    end = 0
    for piece in sorted((piece for piece in pieces if piece.numel), key=lambda piece: piece.at):
        if piece.at < end:
            return piece
        end = piece.at + piece.numel
    return None


def _covers(pieces: Sequence[Piece]) -> bool:
    """Whether the pieces tile the tensor: within each box the ranges abut, and the boxes tile the shape."""
    whole = Box.whole(pieces[0].shape)
    by_box: dict[Box, list[Piece]] = {}
    for piece in pieces:
        by_box.setdefault(piece.box, []).append(piece)
    for box, parts in by_box.items():
        end = 0
        for part in sorted(parts, key=lambda part: (part.start, part.stop)):
            if part.start != end:
                return False
            end = part.stop
        if end != box.numel:
            return False
    return list(by_box) == [whole] or _tile(whole, list(by_box))


def _tile(whole: Box, boxes: Sequence[Box]) -> bool:
    """Whether every element of `whole` lies in one box and none elsewhere, in time linear in the boxes.

    How often an element is covered, as a function of its place, is known by its mixed differences alone: each box
    puts +1 and -1 on its corners, turn about. Those of all boxes must add up to those of the whole.
    """
    corners: defaultdict[tuple[int, ...], int] = defaultdict(int)
    for box, sign in [*((box, 1) for box in boxes), (whole, -1)]:
        if box.numel:
            ends = [((offset, 1), (offset + size, -1)) for offset, size in zip(box.offset, box.size, strict=True)]
            for corner in itertools.product(*ends):
                corners[tuple(place for place, _ in corner)] += sign * math.prod(mark for _, mark in corner)
    return not any(corners.values())
