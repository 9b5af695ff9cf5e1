"""Whether the folder that run.dir names is still the one that this process locked, and where that is."""

from __future__ import annotations

import multiprocessing as mp
import os
import shutil
import threading

import pytest

from pretrain.errors import FolderLost
from pretrain.state.run_files import EVENTS, METRICS, records
from pretrain.training.run_folder import RunFolder

CONTEXT = mp.get_context("fork")


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run", writes=True)
    folder.acquire()
    folder.append(METRICS, {"step": 1})
    return folder


def other_session(path):
    """Another process takes the folder; returns whether it could."""

    def take(pipe):
        try:
            RunFolder(path, writes=True).acquire(grace=0.0)
            pipe.send(True)
            pipe.recv()
        except Exception:
            pipe.send(False)

    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=take, args=(theirs,), daemon=True)
    process.start()
    assert ours.poll(20)
    return ours.recv(), process


def test_a_folder_that_stays_is_its_writer_s(folder, tmp_path):
    assert folder.loss() is None
    folder.complete()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    (tmp_path / "run").touch()
    assert folder.loss() is None


def test_a_moved_folder_is_followed_and_the_new_one_left_alone(folder, tmp_path):
    (tmp_path / "run").rename(tmp_path / "aside")
    taken, process = other_session(tmp_path / "run")
    assert taken
    loss = folder.loss()
    assert loss is not None
    assert loss.reason == f"was moved to {tmp_path}/aside"
    assert loss.place == tmp_path / "aside"
    folder.append(METRICS, {"step": 2})
    folder.write("verdicts.json", "{}")
    folder.update_summary({"step": 2})
    folder.ending()
    assert [entry["step"] for entry in records(tmp_path / "aside" / METRICS)] == [1, 2]
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    assert "ending" not in (tmp_path / "run" / ".lock").read_text()
    with pytest.raises(FolderLost, match=f"run.dir = {tmp_path}/run was moved to"):
        folder.complete()
    folder.follow(loss.place)
    folder.complete()
    assert folder.loss() is None
    process.kill()


def test_a_removed_folder_is_not_made_again(folder, tmp_path, capsys):
    shutil.rmtree(tmp_path / "run")
    loss = folder.loss()
    assert loss is not None
    assert (loss.reason, loss.place) == ("was removed, or moved out of sight", None)
    folder.append(METRICS, {"step": 2})
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(FolderLost):
        folder.complete()


def test_a_lock_that_was_removed_is_made_again(folder, tmp_path):
    (tmp_path / "run" / ".lock").unlink()
    assert folder.loss() is None
    assert f"process {os.getpid()}" in (tmp_path / "run" / ".lock").read_text()
    assert not other_session(tmp_path / "run")[0]


def test_a_removed_lock_that_another_session_took_is_lost(folder, tmp_path):
    (tmp_path / "run" / ".lock").unlink()
    taken, process = other_session(tmp_path / "run")
    assert taken
    loss = folder.loss()
    assert loss is not None
    assert loss.place is None
    assert f"in use by process {process.pid}" in loss.reason
    process.kill()


def test_who_waits_for_a_folder_that_is_moved_gets_the_new_one(folder, tmp_path):
    run = tmp_path / "run"
    run.rename(tmp_path / "aside")
    second = RunFolder(run, writes=True)
    second.acquire(grace=0.0)
    assert second.loss() is None
    second.event("start", 0)
    assert not (tmp_path / "aside" / EVENTS).exists()


def test_two_threads_that_find_the_lock_removed_do_not_take_each_other_for_a_stranger(folder, tmp_path, monkeypatch):
    """The main thread's look and a save's: the second comes while the first makes a new one."""
    from pretrain.training import folder_lock

    (tmp_path / "run" / folder_lock.LOCK).unlink()
    found, take = [], folder_lock._take
    other = threading.Thread(target=lambda: found.append(folder.loss()))

    def slowly(handle):
        taken = take(handle)
        if threading.current_thread() is not other and not other.ident:
            other.start()
            other.join(0.5)
        return taken

    monkeypatch.setattr(folder_lock, "_take", slowly)
    found.append(folder.loss())
    other.join(20)
    assert found == [None, None]
    taken, _ = other_session(tmp_path / "run")
    assert not taken
