"""The safetensors layout, against the library that defines it."""

from __future__ import annotations

import hashlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pretrain.errors import CheckpointError
from pretrain.state import tensor_file
from pretrain.state.files import FileRecord
from pretrain.state.tensor_file import TensorFile, write_tensors

TENSORS = {
    "weight": torch.arange(1000.0),
    "rng": torch.arange(37, dtype=torch.uint8),
    "exp_avg": torch.linspace(-1, 1, 1000),
    "empty": torch.empty(0),
}


@pytest.fixture(params=[16 * 2**20, 64], ids=["one chunk", "many chunks"])
def written(request, tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_file, "CHUNK", request.param)
    monkeypatch.setattr(tensor_file, "FLUSH_EVERY", 3 * request.param)
    record = write_tensors(tmp_path / "a.safetensors", TENSORS, {"pieces": 'ä "quoted"'})
    return tmp_path / "a.safetensors", record


def same(found):
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) and found[name].dtype == TENSORS[name].dtype for name in TENSORS)


def test_the_library_reads_what_we_write(written):
    path, record = written
    same(load_file(path))
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"pieces": 'ä "quoted"'}
    assert record == FileRecord(path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())


def test_we_read_what_the_library_writes(tmp_path):
    save_file(TENSORS, tmp_path / "a", metadata={"k": "v"})
    file = TensorFile(tmp_path / "a")
    same({name: file.read(name) for name in file.names()})
    assert file.metadata == {"k": "v"}


def test_ranges_into_any_target(written):
    file = TensorFile(written[0])
    for first, count in ((0, 1000), (3, 500), (999, 1), (1000, 0)):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            target = torch.full((count,), 77.0, dtype=dtype)
            file.read_into(target, "weight", first)
            assert torch.equal(target, TENSORS["weight"][first : first + count].to(dtype))
    strided = torch.zeros(20)[::2]
    file.read_into(strided, "weight", 5)
    assert torch.equal(strided, torch.arange(5.0, 15.0))


def test_what_is_not_there(written, tmp_path):
    file = TensorFile(written[0])
    for first, count in ((-1, 2), (999, 2)):
        with pytest.raises(CheckpointError, match="ends before"):
            file.read_into(torch.zeros(count), "weight", first)
    with pytest.raises(CheckpointError, match="no 'moment'"):
        file.read_into(torch.zeros(1), "moment", 0)
    with pytest.raises(CheckpointError, match="missing"):
        TensorFile(tmp_path / "nowhere")


def test_a_truncated_file_or_header(written, tmp_path):
    """Any length: an error of one line, at the opening or at the reading."""
    content = written[0].read_bytes()
    for length in (*range(0, 700, 7), len(content) - 1):
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="damaged") as error:
            TensorFile(tmp_path / "cut").read("rng")
        assert len(str(error.value).splitlines()) == 1


def test_a_flipped_header_is_one_line_or_harmless(written, tmp_path):
    content = written[0].read_bytes()
    length = int.from_bytes(content[:8], "little")
    for at in range(8 + length):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        (tmp_path / "flipped").write_bytes(flipped)
        try:
            TensorFile(tmp_path / "flipped").read("weight")
        except CheckpointError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017
