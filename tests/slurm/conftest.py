from collections.abc import Iterator

import pytest

from .cluster import Cluster, missing, running_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A real SLURM of two nodes; one for the whole session."""
    if reason := missing():
        pytest.skip(reason)
    with running_cluster() as started:
        yield started
