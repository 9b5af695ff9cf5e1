"""Follows the growing .jsonl files of a run, here or on another machine, without ever reading one whole."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import IO

from pretrain.errors import UserError
from pretrain.state.run_files import CONFIG, EVENTS, METRICS, VERDICTS, check_run

LAST_BYTES = {METRICS: 2_000_000, EVENTS: 300_000, VERDICTS: 1_000_000}
"""How much of the end of a file is read at first; of layers.jsonl it is the last line."""
BLOCK = 1 << 20
AT_ONCE = 64 << 20
SEEN_BEFORE = 400
"""Bytes that tell a file which was cut and has grown again from one that has only grown: times stand in every line."""
SSH = ("ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15")
CONNECT_SECONDS = 40


class Source(ABC):
    """A run's files: new whole lines of each since the last call."""

    name: str
    silent = 0.0
    """Seconds since the run wrote anything, as it was found; 0 if that cannot be known."""

    @abstractmethod
    def config(self) -> str:
        """The text of config.yaml; empty if there is none."""

    @abstractmethod
    def lines(self, file: str) -> list[bytes]:
        """Lines that were completed since the last call; at first those at the file's end."""

    def close(self) -> None:  # noqa: B027 (files have nothing to end)
        """Leave nothing running."""


def source(target: str, follow: bool) -> Source:
    """The source that `target` names: a folder, or HOST:FOLDER by ssh.

    Args:
        follow: keep the connection and go on reading.

    Raises:
        UserError: there is no run, or ssh fails.
    """
    remote = re.fullmatch(r"(?!-)([^/\\:]+):(.+)", target)
    if remote and not Path(target).exists():
        return RemoteRun(remote[1], remote[2], follow)
    return LocalRun(Path(target))


# ---- files of this machine


class LocalRun(Source):
    """A folder that this machine sees, also one of a mounted file system.

    Raises:
        UserError: it is no run's folder.
    """

    def __init__(self, path: Path):
        self.path, self.name = path, str(path)
        check_run(path, also=", or HOST:FOLDER")
        self.files: dict[str, GrowingFile] = {}
        written = [(path / name).stat().st_mtime for name in (METRICS, EVENTS) if (path / name).is_file()]
        self.silent = max(0.0, time.time() - max(written, default=time.time()))

    def config(self) -> str:
        path = self.path / CONFIG
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    def lines(self, file: str) -> list[bytes]:
        if file not in self.files:
            self.files[file] = GrowingFile(self.path / file, LAST_BYTES.get(file))
        return self.files[file].lines()


class GrowingFile:
    """Whole lines as a file gets them. A file that was cut or replaced is begun anew at its end, also where a resume
    has cut it and written so much since that it is longer than before.

    Args:
        path: may not exist yet.
        last: bytes of its end to begin with; None: its last whole line.
    """

    def __init__(self, path: Path, last: int | None):
        self.path, self.last = path, last
        self.inode, self.position, self.half = -1, 0, b""
        self.before = b""
        """What stood before `position`."""

    def lines(self) -> list[bytes]:
        try:
            with self.path.open("rb") as file:
                return self._new(file)
        except FileNotFoundError:
            return []

    def _new(self, file: IO[bytes]) -> list[bytes]:
        inode, size = os.fstat(file.fileno()).st_ino, file.seek(0, 2)
        if inode != self.inode or size < self.position or self._was_cut(file):
            self.inode, self.half = inode, b""
            self.position = last_line(file, size) if self.last is None else first_line(file, max(0, size - self.last))
        file.seek(self.position)
        new = file.read(min(AT_ONCE, size - self.position))
        self.position += len(new)
        file.seek(max(0, self.position - SEEN_BEFORE))
        self.before = file.read(min(self.position, SEEN_BEFORE))
        *whole, self.half = (self.half + new).split(b"\n")
        return whole

    def _was_cut(self, file: IO[bytes]) -> bool:
        file.seek(self.position - len(self.before))
        return file.read(len(self.before)) != self.before


def first_line(file: IO[bytes], start: int) -> int:
    """Where the first line begins that does not begin before `start`."""
    file.seek(max(0, start - 1))
    if start > 0:
        file.readline()
    return file.tell()


def last_line(file: IO[bytes], size: int) -> int:
    """Where the last whole line of a file of `size` bytes begins; what has no newline behind it is not whole."""
    end = _newline_before(file, size)
    return 0 if end < 0 else _newline_before(file, end) + 1


def _newline_before(file: IO[bytes], end: int) -> int:
    """Position of the last newline before `end`; -1 if there is none."""
    while end > 0:
        start = max(0, end - BLOCK)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found
        end = start
    return -1


# ---- files of another machine


class RemoteRun(Source):
    """A folder on `host`, read by `tail` over ssh, one connection a file.

    Raises:
        UserError: ssh does not get there without a password, or there is no run.
    """

    def __init__(self, host: str, path: str, follow: bool):
        self.host, self.path, self.follow, self.name = host, path, follow, f"{host}:{path}"
        self.tails: dict[str, RemoteTail] = {}
        self.text = self._look()

    def _look(self) -> str:
        """The configuration; before it, in a line of its own, how long the run has been silent."""
        here = f"cd {_path(self.path)} || exit 43; [ -e {CONFIG} ] || [ -e {METRICS} ] || exit 44"
        written = f"$(stat -c %Y {METRICS} || stat -f %m {METRICS} || date +%s)"  # GNU, BSD, or no such file
        script = f"{here}; exec 2>/dev/null; echo $(($(date +%s) - {written})); cat {CONFIG}; :"
        try:
            done = subprocess.run(
                remote_command(self.host, script),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=CONNECT_SECONDS,
                check=False,
            )
        except FileNotFoundError:
            raise UserError(f"{self.name}: there is no ssh on this machine; install it, or mount the folder") from None
        except subprocess.TimeoutExpired:
            raise UserError(f"{self.name}: ssh {self.host} did not answer within {CONNECT_SECONDS} s") from None
        if done.returncode == 43:
            raise UserError(f"{self.name}: no such run folder on {self.host}; give the folder that run.dir names")
        if done.returncode == 44:
            raise UserError(f"{self.name}: not a run folder (no {CONFIG}, no {METRICS}); give the folder of one run")
        if done.returncode:
            raise UserError(f"{self.name}: {_complaint(done.stderr)}; `ssh {self.host}` must work without a password")
        silent, _, text = done.stdout.decode("utf-8", errors="replace").partition("\n")
        self.silent = max(0.0, float(silent)) if silent.strip("-").isdigit() else 0.0
        return text

    def config(self) -> str:
        return self.text

    def lines(self, file: str) -> list[bytes]:
        if file not in self.tails:
            self.tails[file] = RemoteTail(self.host, self.path, file, self.follow)
        return self.tails[file].lines()

    def close(self) -> None:
        for tail in self.tails.values():
            tail.close()


class RemoteTail:
    """One file's end and, with `follow`, what is added to it, as `tail` on the other machine says it."""

    def __init__(self, host: str, path: str, file: str, follow: bool):
        self.host, self.follow, self.half = host, follow, b""
        amount = f"-c {LAST_BYTES[file]}" if file in LAST_BYTES else "-n 1"
        tail = f"cd {_path(path)} && "
        if follow:  # ends with the connection: `cat` waits for its end
            tail += f"{{ tail {amount} -F {file} 2>/dev/null & tail=$!; cat >/dev/null; kill $tail; }}"
        else:
            tail += f"{{ [ ! -e {file} ] || tail {amount} {file}; }}"
        self.process = subprocess.Popen(
            remote_command(host, tail), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.lock, self.chunks = threading.Lock(), list[bytes]()
        self.complaint = b""
        self.readers = [threading.Thread(target=read, daemon=True) for read in (self._read, self._listen)]
        for reader in self.readers:
            reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while chunk := self.process.stdout.read1(BLOCK):  # type: ignore[attr-defined]
            with self.lock:
                self.chunks.append(chunk)

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.complaint = line

    def lines(self) -> list[bytes]:
        """See `Source.lines`.

        Raises:
            ConnectionError: ssh has ended.
        """
        gone = self.process.poll() if self.follow else self.process.wait()
        if gone is not None:  # what it said last is on its way
            for reader in self.readers:
                reader.join()
        with self.lock:
            new, self.chunks = b"".join(self.chunks), []
        if gone is not None and (self.follow or gone) and not new:
            raise ConnectionError(f"{self.host}: the connection is lost: {_complaint(self.complaint)}")
        *whole, self.half = (self.half + new).split(b"\n")
        return whole

    def close(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def remote_command(host: str, script: str) -> list[str]:
    """ssh with a script for sh, whatever shell the user has there."""
    return [*SSH, "--", host, f"sh -c {shlex.quote(script)}"]


def _path(path: str) -> str:
    """Quoted for the other machine's sh, but for a leading ~/, which it knows."""
    return f"~/{shlex.quote(path[2:])}" if path.startswith("~/") else shlex.quote(path)


def _complaint(said: bytes) -> str:
    lines = [line for line in said.decode("utf-8", errors="replace").strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "ssh ended without a word"
