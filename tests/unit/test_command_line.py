"""How a process of a group ends."""

import os
import subprocess
import sys

import pytest

ENDS = """
import atexit, os, threading, time
from pathlib import Path
from pretrain.command_line import leave

def slowly():
    time.sleep(0.3)
    Path("saved").write_text("all of it")

atexit.register(os.abort)
threading.Thread(target=slowly).start()
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
print("no end of line", end="")
leave(3)
"""


def test_leave_waits_and_flushes_and_skips_finalisation(tmp_path):
    done = subprocess.run([sys.executable, "-c", ENDS], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (3, "no end of line", "")
    assert (tmp_path / "saved").read_text() == "all of it"


RAISES = """
import threading
from concurrent.futures import ThreadPoolExecutor
from pretrain import command_line
from pretrain.errors import UserError

command_line.PATIENCE = 0.5
pool = ThreadPoolExecutor(max_workers=1)
pool.submit(int).result()  # its thread waits for more, for ever

def main():
    raise {error}

command_line.leave_with({main})
"""


@pytest.mark.parametrize(
    ("error", "main", "code", "said"),
    [
        ("ZeroDivisionError('for once')", "main", 1, "ZeroDivisionError: for once"),
        ("UserError('key: wrong')", "lambda: command_line.run(main)", 2, "error: key: wrong"),
        ("KeyboardInterrupt", "main", 130, "KeyboardInterrupt"),
        ("SystemExit(3)", "main", 3, ""),
    ],
)
def test_a_thread_that_nobody_ended_does_not_keep_a_process_that_raised(error, main, code, said):
    script = RAISES.format(error=error, main=main)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert done.stderr.strip().splitlines()[-1:] == [said] * bool(said)


LISTENER = """
import errno, os, sys
from pretrain.launch.terminal import outlive_readers

outlive_readers()
print("heard", flush=True)
sys.stdin.readline()  # the reader is gone by now
for _ in range(3):
    print("not heard", flush=True)
    print("nor this", file=sys.stderr, flush=True)
os._exit(5)
"""


def start_listener(output):
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", LISTENER], stdin=pipe, stdout=output, stderr=subprocess.STDOUT)


def test_output_outlives_the_end_of_a_pipe():
    process = start_listener(subprocess.PIPE)
    assert process.stdout.readline() == b"heard\n"
    process.stdout.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.wait(60) == 5


def test_output_outlives_its_terminal():
    ours, theirs = os.openpty()
    process = start_listener(theirs)
    os.close(theirs)
    assert os.read(ours, 100) == b"heard\r\n"
    os.close(ours)
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.wait(60) == 5


FULL = """
import fcntl, os, sys
from pretrain.launch.terminal import outlive_readers

fcntl.fcntl(2, fcntl.F_SETFL, fcntl.fcntl(2, fcntl.F_GETFL) | os.O_NONBLOCK)
outlive_readers()
for _ in range(3000):
    print("x" * 100, file=sys.stderr)
os._exit(5)
"""


def test_a_pipe_that_is_full_and_does_not_wait_holds_nothing_up():
    process = subprocess.Popen([sys.executable, "-c", FULL], stderr=subprocess.PIPE)
    try:
        assert process.wait(60) == 5, "nobody has read"
    finally:
        process.kill()
        process.stderr.close()
