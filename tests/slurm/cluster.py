"""A real SLURM of two nodes on loopback, in one temporary folder: munged, slurmctld and two slurmd."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scancel", "scontrol", "sinfo", "squeue")
NODES = ("n1", "n2")
CONFIGURATION = """
ClusterName=loopback
SlurmctldHost=localhost
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire is also how long a requeued job waits before it starts again (default 120 s, least 5).
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
MailProg=/bin/true
ProctrackType=proctrack/pgid
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
ReturnToService=2
KillWait=5
"""


def programs_path() -> str:
    """PATH with the folders where daemons live, which a user's PATH may lack."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def missing() -> str:
    """Why no cluster can be started here; empty if one can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=programs_path()) is None]
    if absent:
        return f"SLURM is not installed (slurm-wlm, munge): no {', '.join(absent)}"
    return "" if os.geteuid() == 0 else "slurmd starts steps only as root"


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """A cluster that is there within the with block."""
    # Not pytest's folder: a socket's path has room for about 100 characters.
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


class Cluster:
    """Two nodes of two cores each, n1 and n2, whose names no name service knows (as in a cloud)."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.daemons: list[subprocess.Popen[bytes]] = []
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        self.environ = kept | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": programs_path()}

    def start(self) -> None:
        self._configure()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        # --force: the folder is private to root, which munged otherwise takes for a mistake.
        files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={self.folder}/munge.{ending}" for option, ending in files.items()]
        self._daemon("munged", "--foreground", "--force", f"--key-file={key}", *options)
        self._wait(lambda: (self.folder / "munge.socket").exists(), "munged opens its socket")
        self._daemon("slurmctld", "-D", "-c")
        for node in NODES:
            self._daemon("slurmd", "-D", "-N", node)
        self._wait(lambda: self._node_states() == ["idle", "idle"], "both nodes are idle")

    def stop(self) -> None:
        """End the jobs, then the daemons, each by its own process id."""
        with suppress(subprocess.TimeoutExpired):
            self.run("scancel", "--full", "--user=root", check=False)
            deadline = time.monotonic() + 10
            while self.run("squeue", "--noheader", check=False) and time.monotonic() < deadline:
                time.sleep(0.2)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def run(self, *command: str, check: bool = True, timeout: float = 60) -> str:
        """What a command printed, run as a user of the cluster would."""
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=timeout, check=False)
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says, field by field."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for_end(self, number: str, timeout: float) -> dict[str, str]:
        """Wait until a job has left the queue for good; its last description."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        self._wait(lambda: self.job(number)["JobState"] in over, f"job {number} ends", timeout)
        return self.job(number)

    def _configure(self) -> None:
        controller, *node_ports = free_ports(1 + len(NODES))
        lines = [CONFIGURATION.format(folder=self.folder, controller_port=controller)]
        for node, port in zip(NODES, node_ports, strict=True):
            (self.folder / f"spool.{node}").mkdir()
            lines.append(f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=2 State=UNKNOWN")
        lines.append(f"PartitionName=main Nodes={','.join(NODES)} Default=YES MaxTime=60 State=UP\n")
        (self.folder / "state").mkdir()
        (self.folder / "slurm.conf").write_text("\n".join(lines), encoding="utf-8")

    def _daemon(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.{len(self.daemons)}.out").open("wb") as output:
            # A session of its own: Ctrl-C in the terminal is for pytest, which then tears the cluster down.
            daemon = subprocess.Popen(
                command, env=self.environ, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.daemons.append(daemon)

    def _node_states(self) -> list[str]:
        return self.run("sinfo", "--noheader", "--Node", "--format=%t", check=False).split()

    def _wait(self, condition: Callable[[], bool], what: str, timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            ended = [daemon.args for daemon in self.daemons if daemon.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise AssertionError(f"waited for: {what}; ended daemons: {ended}\n{self._logs()}")
            time.sleep(0.2)

    def _logs(self) -> str:
        files = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-2000:]}" for file in files)
