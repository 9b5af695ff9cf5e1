"""What a run's rollbacks have decided, as later sessions read it; and which samples one leaves out."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from pretrain.data.loader import merge_ranges
from pretrain.monitors.policy import skip_range
from pretrain.monitors.rollbacks import Rollbacks
from pretrain.training.run_folder import RunFolder


@pytest.fixture
def rollbacks(tmp_path):
    folder = RunFolder(tmp_path, writes=True)
    for step, to_step, ranges in ((50, 40, [[400, 520]]), (60, 40, [[400, 700]]), (900, 880, [[9000, 9100]])):
        folder.event("save", to_step)
        folder.event("rollback", step, to_step=to_step, sample_ranges=ranges, rate_factor=0.5, rate_last_step=0)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"time": "x", "event": "rollb')
    found = Rollbacks()
    found.read(folder)
    return found


def test_all_that_was_left_out_is_known(rollbacks):
    assert rollbacks.sample_ranges == [[400, 520], [400, 700], [9000, 9100]]


def test_they_are_counted_by_where_they_were_decided(rollbacks):
    assert [rollbacks.since(step) for step in (0, 49, 50, 60, 899, 900)] == [3, 3, 2, 1, 1, 0]


def test_a_checkpoint_knows_those_that_came_before_it(rollbacks):
    """After a rollback to 40, checkpoints lie beyond 40."""
    assert [[entry["step"] for entry in rollbacks.unknown_to(step)] for step in (20, 40, 41, 880, 881)] == [
        [50, 60, 900],
        [50, 60, 900],
        [900],
        [900],
        [],
    ]


def test_a_run_without_events(tmp_path):
    found = Rollbacks()
    found.read(RunFolder(tmp_path, writes=True))
    assert found.entries == []
    assert found.since(0) == 0


@pytest.mark.parametrize(
    ("position", "samples", "skipped", "expected"),
    [
        (152, 0, [], [100, 152]),  # up to the batch that led to it
        (152, 30, [], [100, 152]),
        (152, 80, [], [100, 180]),  # more, as asked for
        (152, 80, [[110, 120]], [100, 190]),  # unseen ones
        (260, 80, [[100, 180]], [100, 260]),  # again from the same checkpoint: what the first left out does not count
        (190, 80, [[100, 180]], [100, 260]),
    ],
)
def test_which_samples_are_left_out(position, samples, skipped, expected):
    checkpoint = SimpleNamespace(training=lambda: json.loads('{"data": {"samples_consumed": 100}}'))
    loader = SimpleNamespace(state_dict=lambda: {"skip_ranges": merge_ranges(skipped)})
    assert skip_range(checkpoint, SimpleNamespace(loader=loader), position, samples) == expected
