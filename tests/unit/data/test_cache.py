"""Caches under real processes: built once, waited for, and never half built."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pretrain.data.cache import build_once
from pretrain.errors import DataError

BUILDER = """
import os, sys, time
from pathlib import Path
from pretrain.data.cache import build_once

def build(folder):
    with open(sys.argv[2], "a") as log:
        log.write(f"{os.getpid()}\\n")
    (folder / "first").write_text("1")
    time.sleep(float(sys.argv[3]))
    (folder / "second").write_text("2")

build_once(Path(sys.argv[1]), build)
assert (Path(sys.argv[1]) / "second").read_text() == "2"
"""


def start(target, log, seconds):
    return subprocess.Popen([sys.executable, "-c", BUILDER, str(target), str(log), str(seconds)])


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_two_processes_build_once(tmp_path):
    target, log = tmp_path / "cache" / "thing", tmp_path / "log"
    both = [start(target, log, 0.5) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert len(log.read_text().splitlines()) == 1


def test_a_killed_build_is_not_taken_for_complete_and_its_lock_is_free(tmp_path):
    target, log = tmp_path / "cache" / "thing", tmp_path / "log"
    killed = start(target, log, 600)
    wait_for(lambda: list(tmp_path.glob("cache/.thing.*.unfinished/first")))
    waiting = start(target, log, 0)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait(30)
    assert waiting.wait(60) == 0
    assert len(log.read_text().splitlines()) == 2
    assert sorted(path.name for path in target.iterdir()) == ["first", "second"]
    assert not list(tmp_path.glob("cache/.thing.*.unfinished"))


def test_a_failed_build_leaves_nothing_and_can_be_repeated(tmp_path):
    def fail(folder):
        (folder / "half").write_text("x")
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        build_once(tmp_path / "thing", fail)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert (build_once(tmp_path / "thing", lambda folder: (folder / "a").write_text("x")) / "a").exists()


def test_a_host_that_was_first_wins(tmp_path):
    def build(folder):
        (tmp_path / "thing").mkdir()  # another host renames its own into place meanwhile
        (tmp_path / "thing" / "theirs").write_text("x")
        (folder / "ours").write_text("x")

    build_once(tmp_path / "thing", build)
    assert [path.name for path in (tmp_path / "thing").iterdir()] == ["theirs"]
    assert not list(tmp_path.glob(".thing.*.unfinished"))


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"^run\.cache: .*thing cannot be built") as error:
        build_once(tmp_path / "file" / "thing", lambda folder: None)
    assert "\n" not in str(error.value)
