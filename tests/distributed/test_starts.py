"""A session that takes long to start is ended neither by a second command nor by ranks that cannot see each other."""

from __future__ import annotations

import time

import pytest
from harness import Group, losses
from targets_starts import GO_ON, PREPARING, train_at, train_on_machines, train_when_told

from pretrain.launch.environment import free_port

LONG = 7.0
"""Seconds: a rank waits for five, that it may see by itself what another has refused."""


@pytest.fixture
def groups():
    started = []
    yield started
    for group in started:
        for process in group.processes:
            process.kill()
            process.join()


@pytest.mark.parametrize(
    ("size", "second", "said"),
    [(1, (), " is in use by process "), (2, ("run.dir=other", "optimizer.rl=1"), "unknown key 'optimizer.rl'")],
    ids=["same run", "typo"],
)
def test_a_second_command_that_is_refused_does_not_end_the_first(size, second, said, command, tmp_path, groups):
    argv = command("run", "watchdog.timeout=3", "train.stop_at_step=1", "evaluation.interval=0")
    if size == 1:
        groups.append(Group(train_at, 1, argv, free_port()))
        assert groups[-1].results() == [0]
    port = free_port()
    first = Group(train_when_told, size, [*argv, "train.stop_at_step=2"], port, tmp_path)
    groups.append(first)
    deadline = time.monotonic() + 120
    while not all((tmp_path / PREPARING.format(rank=rank)).exists() for rank in range(size)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    groups.append(Group(train_at, size, [*argv, *second], port))
    assert groups[-1].results() == [2] * size
    assert said in groups[-1].output()
    first.processes[0].join(LONG)
    assert all(process.is_alive() for process in first.processes), first.output()
    (tmp_path / GO_ON).touch()
    assert first.results() == [0] * size
    assert len(losses(tmp_path / "run")) == 2
    assert "error" not in first.output()


def test_ranks_that_cannot_see_each_other_wait_for_slow_data(command, tmp_path, groups):
    """A new run on two machines: nothing is shared until the ranks meet."""
    argv = command("run", "watchdog.timeout=3", "watchdog.start=6", "train.stop_at_step=1", "evaluation.interval=0")
    groups.append(Group(train_on_machines, 2, argv, tmp_path, 12.0))
    assert groups[-1].results() == [0, 0], groups[-1].output(1)
