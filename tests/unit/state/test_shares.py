"""Ranks tell each other by small files; whoever waits gets all records, one reason, or an end."""

from __future__ import annotations

import os
import threading
import time

import pytest

from pretrain.state import shares
from pretrain.state.files import FileRecord
from pretrain.state.shares import SHARES, ShareFailed, tell_done, tell_failed, wait_for_shares

RECORDS = [FileRecord(10 + rank, f"{rank:064x}") for rank in range(3)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / SHARES).mkdir()
    return tmp_path


def no():
    return False


def test_it_waits_for_the_last(folder):
    for rank in (2, 0):
        tell_done(folder, rank, RECORDS[rank])
    late = threading.Timer(0.2, tell_done, (folder, 1, RECORDS[1]))
    late.start()
    assert wait_for_shares(folder, 3, no) == RECORDS
    late.join()


def test_a_failure_is_told_once_all_have_spoken(folder):
    """Else the folder would be removed under a rank that still writes."""
    tell_failed(folder, 1, "OSError: disk\nfull")
    spoken = []

    def last():
        spoken.append(True)
        tell_done(folder, 2, RECORDS[2])

    tell_done(folder, 0, RECORDS[0])
    threading.Timer(0.2, last).start()
    with pytest.raises(ShareFailed, match="rank 1: OSError: disk"):
        wait_for_shares(folder, 3, no)
    assert spoken


def test_a_failure_without_room_for_its_reason(folder, monkeypatch):
    def full(*args):
        raise OSError("No space left")

    with monkeypatch.context() as patch:
        patch.setattr(shares, "_tell", full)
        tell_failed(folder, 0, "OSError")
    with pytest.raises(ShareFailed, match="rank 0: no reason came through"):
        wait_for_shares(folder, 1, no)


@pytest.mark.parametrize(("ending", "patience", "at_end"), [(False, 0.1, 100.0), (True, 100.0, 0.1)])
def test_a_rank_that_is_gone_does_not_hang_it(folder, ending, patience, at_end):
    tell_done(folder, 0, RECORDS[0])
    with pytest.raises(ShareFailed, match="rank 1: nothing came from it"):
        wait_for_shares(folder, 3, lambda: ending, patience, at_end)


def test_a_rank_that_writes_is_waited_for(folder, monkeypatch):
    """Longer than the patience, as long as its file grows."""

    def write():
        with (folder / "rank_00001.safetensors").open("wb", buffering=0) as file:
            for _ in range(10):
                file.write(os.urandom(10))
                time.sleep(0.1)
        tell_done(folder, 1, RECORDS[1])

    monkeypatch.setattr(shares, "SECONDS_BETWEEN_SIZES", 0.05)
    tell_done(folder, 0, RECORDS[0])
    thread = threading.Thread(target=write)
    thread.start()
    assert wait_for_shares(folder, 2, no, patience=0.8) == RECORDS[:2]
    thread.join()
