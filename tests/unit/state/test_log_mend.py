"""A damaged log before a resume: what can be read stays, in order and once; what is missing is said."""

from __future__ import annotations

import json
import os

import pytest

from pretrain.state.log_mend import Steps, mend, steps_from_json


def line(step, key="loss", **more):
    return json.dumps({"step": step, key: step / 2, **more}).encode() + b"\n"


WHOLE = [line(step) for step in (1, 2, 3, 4)]
EXPECTED = {"loss": Steps([(1, 4, 1)])}


def steps_of(path):
    return [json.loads(entry)["step"] for entry in path.read_bytes().splitlines()]


@pytest.mark.parametrize(
    ("content", "there", "said"),
    [
        (WHOLE, [1, 2, 3, 4], ""),
        ([*WHOLE, line(5), b'{"step": 6, "lo'], [1, 2, 3, 4], ""),
        ([*WHOLE, line(5), b"\xff\n", line(6)], [1, 2, 3, 4], ""),
        ([*WHOLE[:3], WHOLE[3].rstrip()], [1, 2, 3, 4], ""),
        ([*WHOLE, b"\0" * 50], [1, 2, 3, 4], ""),
        (
            [WHOLE[0], b'{"step": 2, "x": "\xff"}\n', *WHOLE[2:]],
            [1, 3, 4],
            "1 line could not be read and was left out; step 2 is missing",
        ),
        (
            [WHOLE[0], b"[1]\n", b'{"step": "x"}\n', b'{"step": true}\n', WHOLE[3]],
            [1, 4],
            "3 lines could not be read and were left out; steps 2 to 3 are missing",
        ),
        ([b"[" * 10**5 + b"\n", *WHOLE], [1, 2, 3, 4], "1 line could not be read and was left out"),
        (WHOLE[2:], [3, 4], "steps 1 to 2 are missing"),
        ([*WHOLE[:2], line(5)], [1, 2], "steps 3 to 4 are missing"),
        ([*WHOLE[:3], b'{"step": 4, "lo'], [1, 2, 3], "step 4 is missing"),
        ([], [], "steps 1 to 4 are missing"),
        ([WHOLE[0], WHOLE[1], WHOLE[1], *WHOLE[2:]], [1, 2, 3, 4], "1 line stood there twice and was left out"),
        ([WHOLE[0], WHOLE[2], WHOLE[1], WHOLE[3]], [1, 2, 3, 4], "1 line was out of order and moved"),
    ],
)
def test_what_is_left_and_what_is_said(tmp_path, content, there, said):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(content))
    found, steps = mend(path, 4, EXPECTED)
    assert found == said
    assert steps_of(path) == there
    assert steps.get("loss", Steps()).missing(there, 4) == []
    assert mend(path, 4, steps) == ("", steps), "said once"
    assert list(tmp_path.iterdir()) == [path]


def test_a_cut_needs_no_room(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join([*WHOLE, line(5), line(6)]))
    monkeypatch.setattr(os, "write", lambda *args: pytest.fail("writes"))
    inode = path.stat().st_ino
    mend(path, 4, {})
    assert steps_of(path) == [1, 2, 3, 4]
    assert path.stat().st_ino == inode


def test_kinds_of_lines_are_told_apart(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1) + line(2) + line(2, "validation_loss") + line(3) + line(4))
    expected = {**EXPECTED, "validation_loss": Steps([(2, 4, 2)])}
    assert mend(path, 4, expected)[0] == "step 4 is missing"


def test_lines_that_wait_are_there(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(WHOLE[:2]))
    assert mend(path, 4, EXPECTED, WHOLE[2:])[0] == ""


@pytest.mark.parametrize(
    ("logged", "present", "holes"),
    [
        (range(1, 9), [1, 2, 3, 4, 5, 6, 7, 8], []),
        (range(1, 9), [2, 3, 6, 8], [(1, 1), (4, 5), (7, 7)]),
        ([*range(10, 50, 10), *range(41, 45)], [10, 40, 41, 44], [(20, 30), (42, 43)]),
        (range(10, 60, 10), [11, 12, 50], [(10, 40)]),
        ([1, 2, 4, 8, 16], [], [(1, 2), (4, 8), (16, 16)]),
    ],
)
def test_holes(logged, present, holes):
    steps = Steps()
    for step in logged:
        steps.add(step)
        steps.add(step)  # again: once is enough
    again = steps_from_json(json.loads(json.dumps({"a": steps.ranges})))["a"]
    assert again.missing(present, 100) == holes
    assert again.missing(present, 0) == []


@pytest.mark.parametrize(
    "value",
    [None, 3, [], {"a": 1}, {"a": [1]}, {"a": [[1, 2]]}, {"a": [[3, 1, 1]]}, {"a": [[1, 2, 0]]}, {"a": [[1.0, 2, 1]]}],
)
def test_what_a_checkpoint_says_wrongly_says_nothing(value):
    assert steps_from_json(value) == {}


def test_a_huge_range_costs_nothing():
    assert Steps([(0, 10**15, 1)]).missing([5], 10**15) == [(0, 4), (6, 10**15)]
