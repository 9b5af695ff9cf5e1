import fcntl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .cluster import Cluster, missing, running_cluster

LOCK = Path(tempfile.gettempdir()) / "kilolayer-tests-slurm.lock"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A real SLURM of two nodes; one at a time on a machine, also where files of tests run in parallel."""
    if reason := missing():
        pytest.skip(reason)
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with running_cluster() as started:
            yield started
