"""Following files as they grow: whole lines only, from the end on, through cuts, and from another machine."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.analysis import watch_follow
from pretrain.analysis.watch_follow import GrowingFile, LocalRun, RemoteRun, Source, source
from pretrain.errors import UserError
from pretrain.state.run_files import EVENTS, LAYERS, METRICS

from .synthetic_runs import write_run


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_lines_come_when_they_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    file = GrowingFile(path, 100)
    assert file.lines() == []  # not there yet
    append(path, "one\ntw")
    assert file.lines() == [b"one"]
    append(path, "o")
    assert file.lines() == []
    append(path, "\nthree\nfo")
    assert file.lines() == [b"two", b"three"]


def test_a_file_is_begun_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"line {i:04}\n" for i in range(1000)))
    assert GrowingFile(path, 25).lines() == [b"line 0998", b"line 0999"]
    monkeypatch.setattr(watch_follow, "BLOCK", 7)
    assert GrowingFile(path, None).lines() == [b"line 0999"]
    append(path, "half")
    file = GrowingFile(path, None)
    assert file.lines() == [b"line 0999"]
    append(path, " and half\n")
    assert file.lines() == [b"half and half"]


@pytest.mark.parametrize(("text", "found"), [("", []), ("half", []), ("one\n", [b"one"]), ("one\ntwo", [b"one"])])
def test_the_last_whole_line_of_short_files(tmp_path: Path, text: str, found: list[bytes]) -> None:
    path = tmp_path / "log"
    path.write_text(text)
    assert GrowingFile(path, None).lines() == found


def test_the_end_of_a_large_file_is_all_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "layers.jsonl"
    with path.open("wb") as file:
        file.seek(1 << 31)  # 2 GiB of nothing: who reads them fails
        file.write(b"\nfirst\nlast\n")
    assert GrowingFile(path, None).lines() == [b"last"]
    assert GrowingFile(path, 12).lines() == [b"first", b"last"]


@pytest.mark.parametrize("how", ["cut", "replaced", "cut and grown"])
def test_a_file_that_was_cut_or_replaced_is_begun_anew(tmp_path: Path, how: str) -> None:
    path = tmp_path / "log"
    path.write_text("1\n2\n3\n")
    file = GrowingFile(path, 100)
    file.lines()
    if how == "cut":
        path.write_text("1\n")
    elif how == "cut and grown":
        with path.open("r+") as cut:
            cut.truncate(2)
        append(path, "2b\n3b\n4b\n")
    else:
        (tmp_path / "new").write_text("1\n2\n3\n4\n5\n")
        (tmp_path / "new").replace(path)
    assert (
        file.lines()
        == {
            "cut": [b"1"],
            "replaced": [b"1", b"2", b"3", b"4", b"5"],
            "cut and grown": [b"1", b"2b", b"3b", b"4b"],
        }[how]
    )
    append(path, "new\n")
    assert file.lines() == [b"new"]


def test_which_source_a_target_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a:b")
    assert isinstance(source("a:b", follow=False), LocalRun)
    for target in ("nowhere", "./no:where", "/no:where"):
        with pytest.raises(UserError, match="no such run folder"):
            source(target, follow=False)


# ---- another machine, which a script plays that stands where ssh is looked for

HERE = """#!/bin/sh
for script; do :; done
exec sh -c "$script"
"""


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")

    def write(script: str) -> None:
        (folder / "ssh").write_text(script)
        (folder / "ssh").chmod(0o755)

    return write


def wait_for(files: Source, file: str, count: int) -> list[bytes]:
    found: list[bytes] = []
    end = time.monotonic() + 20
    while len(found) < count and time.monotonic() < end:
        found += files.lines(file)
        time.sleep(0.02)
    return found


def test_remote_files_once(tmp_path: Path, ssh: Callable[[str], None]) -> None:
    ssh(HERE)
    run = write_run(tmp_path / "a run's folder")
    os.utime(run / METRICS, (0, time.time() - 7300))
    files = source(f"host:{run}", follow=False)
    assert isinstance(files, RemoteRun)
    assert files.config() == (run / "config.yaml").read_text()
    assert files.silent == pytest.approx(7300, abs=30)
    assert [json.loads(line)["step"] for line in files.lines(METRICS)] == [*range(1, 21), 20]
    assert [json.loads(line)["step"] for line in files.lines(LAYERS)] == [20]
    (run / EVENTS).unlink()
    assert files.lines(EVENTS) == []


def test_remote_files_as_they_grow(tmp_path: Path, ssh: Callable[[str], None]) -> None:
    ssh(HERE)
    run = write_run(tmp_path / "run")
    files = source(f"me@host:{run}", follow=True)
    try:
        assert len(wait_for(files, METRICS, 21)) == 21
        append(run / METRICS, '{"step": 21}\n{"step"')
        assert wait_for(files, METRICS, 1) == [b'{"step": 21}']
        append(run / METRICS, ": 22}\n")
        assert wait_for(files, METRICS, 1) == [b'{"step": 22}']
    finally:
        files.close()
    assert files.tails[METRICS].process.returncode is not None


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "echo 'banner\nme@host: Permission denied (publickey).' >&2; exit 255",
            "Permission denied.*without a password",
        ),
        ("exit 255", "without a word"),
    ],
)
def test_ssh_that_fails_is_one_line(ssh: Callable[[str], None], script: str, words: str) -> None:
    ssh(f"#!/bin/sh\n{script}\n")
    with pytest.raises(UserError, match=f"host:runs/demo: .*{words}") as raised:
        source("host:runs/demo", follow=True)
    assert "\n" not in str(raised.value)


def test_remote_folders_that_are_no_runs(tmp_path: Path, ssh: Callable[[str], None]) -> None:
    ssh(HERE)
    for path, words in ((tmp_path / "nowhere", "no such run folder on host"), (tmp_path, "not a run folder")):
        with pytest.raises(UserError, match=words):
            source(f"host:{path}", follow=False)


def test_a_connection_that_is_lost_is_told(tmp_path: Path, ssh: Callable[[str], None]) -> None:
    run = write_run(tmp_path / "run")
    ssh(HERE.replace("exec", 'case "$script" in *tail*) echo "broken pipe" >&2; exit 255;; esac\nexec'))
    files = source(f"host:{run}", follow=True)
    with pytest.raises(ConnectionError, match="host: the connection is lost: broken pipe"):
        wait_for(files, METRICS, 1)
    files.close()
