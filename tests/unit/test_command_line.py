"""How a process of a group ends."""

import subprocess
import sys

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
