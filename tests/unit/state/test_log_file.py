"""A log on a disk that has no room for a while: nothing half in the file, nothing lost, the failure names the file."""

from __future__ import annotations

import errno
import os
from contextlib import nullcontext

import pytest

from pretrain.state import files
from pretrain.state.log_file import LogFile
from pretrain.state.tensor_file import write_tensors


@pytest.fixture
def disk(monkeypatch):
    """`disk["room"]`: bytes that os.write still takes."""
    disk, write = {"room": 10**9}, os.write

    def limited(handle, content):
        if not disk["room"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = write(handle, bytes(content)[: disk["room"]])
        disk["room"] -= done
        return done

    monkeypatch.setattr(os, "write", limited)
    return disk


@pytest.mark.parametrize("room", range(0, 40, 3))
def test_an_entry_is_whole_or_waits(tmp_path, disk, room):
    entries = [b'{"step": %d}\n' % step for step in range(1, 5)]
    path, log = tmp_path / "log.jsonl", LogFile(lines=True)
    disk["room"] = room
    for number, entry in enumerate(entries, 1):
        log.add(entry)
        short = room < sum(map(len, entries[:number]))
        with (
            pytest.raises(OSError, match="No space left on device, make room on") if short else nullcontext() as caught
        ):
            log.write_out(path)
        assert caught is None or caught.value.filename == str(path)
        assert path.read_bytes() + b"".join(log.waiting) == b"".join(entries[:number])
    disk["room"] = 10**9
    log.write_out(path)
    assert path.read_bytes() == b"".join(entries)
    assert not log.waiting


def test_half_a_line_of_a_killed_writer_is_ended_once(tmp_path, disk):
    path, log = tmp_path / "log.jsonl", LogFile(lines=True)
    path.write_bytes(b'{"half')
    disk["room"] = 3
    for entry in (b'{"a": 1}\n', b'{"b": 2}\n'):
        log.add(entry)
        with pytest.raises(OSError, match="No space"):
            log.write_out(path)
        disk["room"] = 0
    disk["room"] = 100
    log.write_out(path)
    assert path.read_bytes() == b'{"half\n{"a": 1}\n{"b": 2}\n'


def test_memory_is_bounded_and_what_is_lost_is_counted(tmp_path, disk):
    path, log = tmp_path / "records", LogFile(lines=False, most=8)
    for entry in (b"1234", b"5678", b"9", b"10"):
        log.add(entry)
    assert log.lost == 2
    log.write_out(path)
    log.add(b"11")
    log.write_out(path)
    assert path.read_bytes() == b"1234567811"


def fails(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: files.write_file(path, "text"),
        lambda path: files.replace_file(path, "text"),
        lambda path: write_tensors(path, {}, {"a": "b"}),
        files.sync,
    ],
)
def test_a_failed_flush_names_its_file_and_the_cure(tmp_path, monkeypatch, write):
    path = tmp_path / "file"
    path.write_text("before")
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="make room on that disk") as caught:
        write(path)
    assert caught.value.filename == str(path)
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_a_file_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("before")
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="No space"):
        files.replace_text(path, "after")
    assert path.read_text() == "before"
