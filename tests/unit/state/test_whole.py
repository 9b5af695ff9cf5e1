"""What counts as a whole checkpoint: one judgement of what a file may say, and how much it may cost to find out."""

from __future__ import annotations

import json
import os
import time
import tracemalloc

import pytest
import torch
from fuzz_cases import sign

from pretrain.errors import CheckpointError
from pretrain.state.bounded import TEXT_BYTES, BadFile, parse_json, read_bounded
from pretrain.state.index import MOMENTS, WEIGHT, Box, Index, Piece
from pretrain.state.reader import Checkpoint, complete_checkpoints, point_latest, resolve_checkpoint
from pretrain.state.whole import Judgement
from pretrain.state.writer import commit, rank_file, read_pieces, write_common_files, write_rank_file

torch.set_num_threads(1)
STEP = 3


@pytest.fixture
def folder(tmp_path):
    """Two ranks with six elements each of two parameters."""
    return made(tmp_path, STEP)


def made(checkpoints, step):
    draft = checkpoints / ".draft"
    draft.mkdir()
    records, pieces = {}, []
    for rank in range(2):
        rows = [
            Piece(name, (3, 4), Box.whole((3, 4)), 6 * rank, 6 * rank + 6, 6 * i) for i, name in enumerate(("a", "b"))
        ]
        buffers = {quantity: torch.arange(12.0) for quantity in (WEIGHT, *MOMENTS)}
        records[rank_file(rank)] = write_rank_file(draft, rank, rows, buffers)
        pieces += read_pieces(draft, rank)
    training = {"progress": {"step": step}, "callbacks": {}}
    write_common_files(draft, Index(pieces), training, {"config.yaml": b"name: x\n"})
    commit(draft, checkpoints / f"step_{step:08d}", step, {"processes": 2}, records)
    return checkpoints / f"step_{step:08d}"


def edit(folder, name, change):
    value = json.loads((folder / name).read_text())
    change(value)
    (folder / name).write_text(json.dumps(value))
    sign(folder)


def problem(folder):
    """What is said, by verify's judgement and by loading alike, in one line."""
    (found,) = list(Judgement(folder).problems())
    for verify in ("hashes", "sizes"):
        with pytest.raises(CheckpointError) as error:
            Checkpoint(folder, verify)
        assert str(error.value) == f"{folder}: {found}"
        assert len(found.splitlines()) == 1
    return found


def test_whole(folder):
    assert list(Judgement(folder).problems()) == []
    assert torch.equal(Checkpoint(folder).read("b").view(-1), torch.tensor([6.0, 7, 8, 9, 10, 11] * 2))


def piece(value, name="a", number=0):
    return lambda index: index["tensors"][name]["pieces"][number].update(value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (piece({"file": "../rank_00000.safetensors"}), "no tensor file of the manifest"),
        (piece({"file": "training.json"}), "no tensor file of the manifest"),
        (piece({"at": 1}), "b shares elements of rank_00000.safetensors"),
        (piece({"at": 7}, "b", 1), "its buffers end at 12, the index says 13"),
        (piece({"range": [0, 5]}), "a is not covered exactly once"),
        (piece({"range": [-6, 6]}), "a: a piece is [-6, 6]"),
        (piece({"at": True}), "a: a piece is"),
        (lambda index: index["tensors"].update(c={"shape": [2], "pieces": []}), "c: it has no pieces"),
        (lambda index: index["tensors"].update(c={"shape": [-2], "pieces": [{}]}), "c: shape is negative"),
        (lambda index: index["tensors"]["a"].update(shape=[2**20, 2**20]), "a is not covered exactly once"),
        (lambda index: index["tensors"].clear(), "it names no parameter"),
    ],
)
def test_what_an_index_may_not_say(change, words, folder):
    edit(folder, "index.json", change)
    assert words in problem(folder)


def test_a_shape_of_4_tib_that_its_pieces_cover(folder):
    """Nothing is allocated: the files do not hold as much."""

    def change(index):
        index["tensors"] = {"a": {"shape": [2**40], "pieces": [{"file": rank_file(0), "range": [0, 2**40], "at": 0}]}}

    edit(folder, "index.json", change)
    assert "its buffers end at 12, the index says 1099511627776" in problem(folder)


@pytest.mark.parametrize("name", ["index.json", "training.json"])
def test_a_manifest_without_the_files_that_a_checkpoint_needs(name, folder):
    sign(folder, lambda body: body["files"].pop(name))
    assert problem(folder) == f"manifest.json knows no {name}"


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "/etc/passwd", "manifest.json", "", "a\n"])
def test_names_that_lead_elsewhere(name, folder):
    sign(folder, lambda body: body["files"].update({name: {"bytes": 1, "sha256": "0" * 64}}))
    assert "is no name of a file in its folder" in problem(folder)


def test_a_name_of_another_step(folder):
    """It is not whole, not the newest, and not among those that count."""
    other = folder.rename(folder.with_name("step_00000099"))
    made(folder.parent, STEP)
    assert "manifest.json is of step 3" in problem(other)
    assert complete_checkpoints(folder.parent) == [folder]
    assert resolve_checkpoint(folder.parent) == folder


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *(("progress", value) for value in ([], None, {"step": 4}, {"samples": -1}, {"samples": True})),
        *(("progress", value) for value in ({"seconds": float("nan")}, {"tokens": 2**70}, {"loss": "x"})),
        *(("data", value) for value in ({"samples_consumed": 1.0}, {"skip_ranges": [[3, 2]]}, {"fingerprint": 3})),
        *(("callbacks", value) for value in ([], {"Policy": 3})),
        *(("optimizer_steps", -1), ("loss_scaler", {"cur_scale": "x"})),
    ],
)
def test_values_of_the_training_state(path, value, folder):
    edit(folder, "training.json", lambda state: state.update({path: value}))
    assert problem(folder).startswith(f"training.json: damaged ({path}")


@pytest.mark.parametrize("name", ["manifest.json", "index.json", "training.json", "config.yaml", rank_file(1)])
@pytest.mark.parametrize(
    ("what", "make"),
    [
        ("a symbolic link", lambda path: path.symlink_to("/dev/zero")),
        ("a pipe", os.mkfifo),
        ("a folder", lambda path: path.mkdir()),
    ],
)
def test_no_regular_file(what, make, name, folder):
    """A link to a device that never ends, a pipe that nobody writes to: found before anything is read."""
    (folder / name).unlink()
    make(folder / name)
    assert f"is {what}, not a regular file" in problem(folder)


@pytest.mark.parametrize("name", ["index.json", "training.json"])
def test_nested_deep(name, folder):
    (folder / name).write_text("[" * 100_000)
    sign(folder)
    assert problem(folder) == f"{name}: damaged (it is nested too deep)"


def test_a_nesting_that_python_would_read():
    assert parse_json(b"[" * 60 + b"]" * 60)
    with pytest.raises(BadFile, match="nested deeper than 64"):
        parse_json(b"[" * 70 + b"]" * 70)


def test_a_text_without_end(tmp_path):
    with (tmp_path / "long").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(BadFile, match="more than 16,777,216 bytes"):
        read_bounded(tmp_path / "long", TEXT_BYTES)


@pytest.mark.parametrize("content", [b"[]," * 2**23, b"[" + b"[]," * 2**17 + b"0]"], ids=["too large", "not too large"])
def test_memory_of_a_crafted_text(content, folder):
    """Too large: a part is read. Else at most 25 times the text, which may have 16 MiB."""
    (folder / "training.json").write_bytes(content)
    sign(folder)
    tracemalloc.start()
    list(Judgement(folder).problems())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < max(2 * TEXT_BYTES, 25 * len(content))


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))


@pytest.mark.parametrize(("text", "words"), [(BOMB, "more than 50,000 values"), ("a: &a [*a]", "inside of what")])
def test_a_config_that_grows(text, words, folder):
    (folder / "config.yaml").write_text(text)
    sign(folder)
    start = time.process_time()
    assert words in problem(folder)
    assert time.process_time() - start < 5


def test_boxes_by_the_thousand_are_judged_in_linear_time():
    """The corners of the boxes tell; pairs of them would be two thousand million."""
    count = 60_000
    boxes = [Piece("w", (2, count), Box((0, i), (2, 1)), 0, 2, 2 * i, "f") for i in range(count)]
    start = time.process_time()
    assert Index(boxes).incomplete() == []
    assert Index([*boxes[:-1], boxes[0]]).incomplete() == ["w"]
    assert time.process_time() - start < 30


class TestLatest:
    @pytest.mark.parametrize(
        "kind", ["folder", "full folder", "garbage", "dangling link", "link to a folder", "missing"]
    )
    def test_whatever_was_there(self, kind, folder):
        latest = folder.parent / "latest"
        match kind:
            case "folder":
                latest.mkdir()
            case "full folder":
                latest.mkdir()
                (latest / "weights").write_text("precious")
            case "garbage":
                latest.write_bytes(b"\xff\0")
            case "dangling link":
                latest.symlink_to("nowhere")
            case "link to a folder":
                latest.symlink_to(folder.name)
        point_latest(folder.parent, folder)
        assert latest.read_text() == f"{folder.name}\n"
        assert not latest.is_symlink()
        assert (folder / "manifest.json").is_file()
        if kind == "full folder":
            assert (folder.parent / "damaged_latest" / "weights").read_text() == "precious"


def test_descriptors_are_given_back(folder):
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    (folder / "training.json").unlink()
    (folder / rank_file(0)).write_bytes(b"short")
    list(Judgement(folder).problems())
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
