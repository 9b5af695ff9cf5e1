"""The index: pieces by name, their coverage, and their JSON."""

from __future__ import annotations

import json
import random

import pytest

from pretrain.state.bounded import BadFile
from pretrain.state.index import Box, Index, Piece


def whole(name, shape, start, stop, at=0, file="rank_00000.safetensors"):
    return Piece(name, shape, Box.whole(shape), start, stop, at, file)


def boxed(shape, offset, size, start=None, stop=None):
    box = Box(offset, size)
    return Piece("w", shape, box, 0 if start is None else start, box.numel if stop is None else stop, 0, "f")


def test_json_round_trip():
    pieces = [
        whole("a.weight", (3, 4), 0, 7, at=2),
        whole("a.weight", (3, 4), 7, 12, at=0, file="rank_00001.safetensors"),
        Piece("b", (4, 6), Box((0, 0), (4, 3)), 0, 12, 5, "x"),
        Piece("b", (4, 6), Box((0, 3), (4, 3)), 0, 5, 9, "y"),
        Piece("b", (4, 6), Box((0, 3), (4, 3)), 5, 12, 0, "z"),
        whole("scalar", (), 0, 1),
        whole("naïve.weight", (2,), 0, 2),
    ]
    index = Index(pieces)
    again = Index.from_json(index.to_json())
    assert list(again) == list(index)
    assert again.names() == ["a.weight", "b", "scalar", "naïve.weight"]
    assert [again.shape(name) for name in again.names()] == [(3, 4), (4, 6), (), (2,)]
    assert again.pieces("b") == pieces[2:5]
    assert "b" in again
    assert "c" not in again
    assert again.incomplete() == []
    for piece in pieces:
        assert Piece.from_json(piece.name, piece.shape, piece.to_json()) == piece


@pytest.mark.parametrize(
    ("pieces", "complete"),
    [
        ([(0, 12)], True),
        ([(5, 12), (0, 5)], True),
        ([(0, 5), (6, 12)], False),
        ([(0, 6), (5, 12)], False),
        ([(0, 12), (0, 12)], False),
        ([(1, 12)], False),
        ([(0, 11)], False),
        ([(0, 13)], False),
        ([(0, 4), (4, 4), (4, 12)], True),
    ],
)
def test_ranges_cover_once(pieces, complete):
    index = Index([whole("w", (3, 4), start, stop) for start, stop in pieces])
    assert index.incomplete() == ([] if complete else ["w"])


@pytest.mark.parametrize(
    ("boxes", "complete"),
    [
        ([((0, 0), (4, 2)), ((0, 2), (4, 4))], True),
        ([((0, 0), (2, 6)), ((2, 0), (2, 6))], True),
        ([((0, 0), (2, 3)), ((0, 3), (2, 3)), ((2, 0), (2, 3)), ((2, 3), (2, 3))], True),
        ([((0, 0), (4, 2)), ((0, 3), (4, 3))], False),  # a gap of one column
        ([((0, 0), (4, 4)), ((0, 3), (4, 3))], False),  # one column twice
        ([((0, 0), (4, 3)), ((0, 1), (4, 3))], False),  # columns 1, 2 twice, 4, 5 never; the volumes add up
        ([((0, 0), (4, 3)), ((0, 6), (4, 3))], False),  # beyond the tensor; the volumes add up
    ],
)
def test_boxes_cover_once(boxes, complete):
    index = Index([boxed((4, 6), offset, size) for offset, size in boxes])
    assert index.incomplete() == ([] if complete else ["w"])


def test_ranges_within_a_column_box():
    left, right = ((0, 0), (4, 2)), ((0, 2), (4, 4))
    good = [boxed((4, 6), *left), boxed((4, 6), *right, 0, 9), boxed((4, 6), *right, 9, 16)]
    assert Index(good).incomplete() == []
    assert Index([*good[:2], boxed((4, 6), *right, 10, 16)]).incomplete() == ["w"]
    assert Index(good[:2]).incomplete() == ["w"]


def test_coverage_against_counting():
    """Random sets of boxes and ranges: complete exactly where every element is counted once."""
    draw = random.Random(7)
    complete = 0
    for _ in range(400):
        rows, columns = draw.randint(1, 4), draw.randint(1, 4)
        cut = draw.randint(0, columns)
        boxes = [((0, 0), (rows, cut)), ((0, cut), (rows, columns - cut))]
        boxes = [box for box in boxes if box[1][1]]
        if draw.random() < 0.4:  # move or double one
            offset, size = draw.choice(boxes)
            shift = draw.randint(-1, 1)
            if offset[1] + shift >= 0 and offset[1] + shift + size[1] <= columns:
                boxes[boxes.index((offset, size))] = ((offset[0], offset[1] + shift), size)
        pieces = []
        for offset, size in boxes:
            numel = size[0] * size[1]
            middle = draw.randint(0, numel)
            spans = [(0, middle), (middle, numel)]
            if draw.random() < 0.2:
                spans.pop()
            pieces += [boxed((rows, columns), offset, size, a, b) for a, b in spans if a < b]
        if not pieces:
            continue
        count = [[0] * columns for _ in range(rows)]
        for piece in pieces:
            for flat in range(piece.start, piece.stop):
                row, column = divmod(flat, piece.box.size[1])
                count[row + piece.box.offset[0]][column + piece.box.offset[1]] += 1
        expected = all(n == 1 for row in count for n in row)
        complete += expected
        assert (Index(pieces).incomplete() == []) == expected, pieces
    assert 50 < complete < 350, "both answers must occur often"


def test_a_deep_index_is_quick_to_search():
    names = [f"decoder.layers.{i}.ffn.fc1.weight" for i in range(1000)]
    index = Index(whole(name, (3,), 0, 3) for name in names)
    assert index.names() == names
    assert Index.from_json(index.to_json()).names() == names


@pytest.mark.parametrize(
    ("shape", "box", "reason"),
    [
        ([4, 4], {"offset": [7, 999], "size": [0, 9]}, "outside of its parameter"),
        ([2**53, 2**53, 0], None, "too large"),
    ],
)
def test_what_holds_no_element_has_its_limits_too(shape, box, reason):
    piece = {"file": "rank_00000.safetensors", "range": [0, 0], "at": 0} | ({"box": box} if box else {})
    with pytest.raises(BadFile, match=reason):
        Index.from_json(json.dumps({"tensors": {"a": {"shape": shape, "pieces": [piece]}}}).encode())
