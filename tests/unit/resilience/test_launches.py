"""Ranks that have not met tell their own launch from every other, and do not miss those that they could not see."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from beats_by_hand import BEAT

from pretrain.launch.place import RankEnvironment
from pretrain.resilience import board as boards
from pretrain.resilience.board import Board, launch_key, near
from pretrain.resilience.claim import Claim
from pretrain.resilience.diagnosis import diagnose
from pretrain.resilience.heartbeat import Peers, write_beat
from pretrain.resilience.limits import Limits
from pretrain.resilience.machine import clock, identity
from pretrain.resilience.sources import Launch, Session, heartbeat_name, start_name

NOW = clock()


def place(rank=0, size=2, local=2, launcher="deepspeed", job="", local_rank=None):
    local_rank = rank % local if local_rank is None else local_rank
    return RankEnvironment(rank, size, local_rank, local, "127.0.0.1", 29500, launcher, job)


CHILD = """
import os
from pretrain.launch.environment import rank_environment
from pretrain.resilience.board import launch_key
print(launch_key(rank_environment(os.environ), os.environ).name)
"""
# A launcher of two ranks, one of them in a shell script that does not `exec`.
LAUNCHER = f"""
import os, subprocess, sys
common = dict(os.environ, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500", CROSS_SIZE="1")
child = [sys.executable, "-c", {CHILD!r}]
for rank, command in enumerate((child, ["sh", "-c", '"$0" "$@"; true', *child])):
    subprocess.run(command, env=dict(common, RANK=str(rank), LOCAL_RANK=str(rank)), check=True)
"""


def keys_of_a_launch():
    hidden = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "CROSS_SIZE", "TORCHELASTIC_RUN_ID", "PMI_RANK")
    environ = {name: value for name, value in os.environ.items() if name not in hidden}
    command = [sys.executable, "-c", LAUNCHER]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=60).stdout.split()


def test_ranks_of_one_launcher_have_one_key_and_those_of_the_next_another():
    """Port 29500 for both: DeepSpeed's."""
    (first, other), (second, another) = keys_of_a_launch(), keys_of_a_launch()
    assert first == other
    assert second == another
    assert first != second


def test_a_job_with_a_name_has_one_key_on_all_machines(monkeypatch):
    key = launch_key(place(job="slurm-7.0-0", launcher="slurm"), {})
    monkeypatch.setattr(boards.socket, "gethostname", lambda: "another")
    assert launch_key(place(3, 4, job="slurm-7.0-0", launcher="slurm"), {}) == key
    assert key.everywhere
    again = launch_key(place(job="slurm-7.0-1", launcher="slurm"), {})
    assert again.name != key.name, "after a requeue"


def test_a_lone_process_shares_its_key_with_nobody(monkeypatch):
    alone = RankEnvironment(0, 1, 0, 1, "127.0.0.1", 0, "single")
    own = launch_key(alone, {})
    assert launch_key(alone, {}) == own
    monkeypatch.setattr(boards.os, "getpid", os.getppid)
    assert launch_key(alone, {}).name != own.name


@pytest.mark.parametrize(
    ("environment", "environ", "ranks"),
    [
        (place(1, 2), {}, {0}),
        (place(5, 8, 4), {}, {4, 6, 7}),
        (place(5, 8, 4, local_rank=0), {}, set()),  # each sees a GPU of its own: nothing says where it stands
        (place(1, 4, launcher="slurm", local_rank=0), {"SLURM_GTIDS": "1,3"}, {3}),
        (place(1, 4, launcher="mpirun", local_rank=0), {}, set()),  # perhaps spread over the machines in turn
        (place(1, 4, 4, launcher="mpirun"), {}, {0, 2, 3}),
        (replace(place(1, 4, 4), master_addr="node1"), {}, set()),  # by hand, and the size of a machine unsaid
        (replace(place(1, 4, 4), master_addr="node1"), {"LOCAL_WORLD_SIZE": "4"}, {0, 2, 3}),
    ],
)
def test_the_ranks_that_are_certain_to_be_here(environment, environ, ranks):
    assert near(environment, environ) == ranks


class Hand:
    """Ranks of this machine that were started by hand, under one key; process numbers 100 N + rank for launch N."""

    def __init__(self, folder: Path):
        self.board = Board(folder / "early", frozenset({0, 1}))
        self.board.logs = folder / "logs"
        for path in self.board.places:
            path.mkdir()

    def launch(self, number: int, rank: int) -> Launch:
        born = NOW + 10.0 * number + 0.1 * rank
        return Launch(self.board, rank, "k", born, pid=100 * number + rank)

    def beats(self, number: int, rank: int, **changes) -> None:
        launch = self.launch(number, rank)
        said = {"session": "k", "machine": identity(), "clock": launch.born + 1, "pid": launch.pid}
        write_beat(launch.path, replace(BEAT, rank=rank, born=launch.born, **(said | changes)))


@pytest.fixture
def hand(tmp_path):
    return Hand(tmp_path)


def refuse(hand, number, rank):
    """That launch's rank says by a claim that its input is wrong, and ends."""
    claim = Claim(hand.board, hand.launch(number, rank))
    path = hand.board.early / "hang_k_0.json"
    hand.beats(number, rank)
    assert claim.take(rank)
    claim.pronounce(rank, diagnose({0: BEAT}, set(), 61))
    said = path.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {100 * number + rank}')
    path.write_text(said)
    hand.beats(number, rank, status="crashed", exit_code=2)


def test_a_second_launch_at_the_same_port_that_is_refused_ends_no_other(hand):
    for rank in (0, 1):
        hand.beats(1, rank)
        hand.beats(2, rank)
    refuse(hand, 2, 1)
    first, second = hand.launch(1, 0), hand.launch(2, 0)
    peers = Peers(first, [1])
    peers.look(1.0)
    assert (peers.last[1].pid, peers.lost(Limits(60, 600, 600), 1.0)) == (101, set())
    assert Claim(hand.board, second).verdict() is not None
    own = Claim(hand.board, first)
    assert own.verdict() is None
    assert own.take(0), "it can speak for its own"
    assert Claim(hand.board, second).holder() == 1


def test_nor_before_the_first_one_s_own_rank_has_been_seen(hand):
    hand.beats(1, 0)
    hand.beats(2, 0)
    refuse(hand, 2, 1)
    assert hand.launch(1, 0).beat(1) is None
    assert Claim(hand.board, hand.launch(1, 0)).verdict() is None


def test_a_verdict_of_a_process_that_was_never_seen_is_not_followed(hand):
    hand.beats(1, 0)
    refuse(hand, 1, 1)
    (hand.board.early / "rank_1_process_101.json").unlink()
    assert Claim(hand.board, hand.launch(1, 0)).verdict() is None


def test_what_an_earlier_launch_left_behind_does_not_count(tmp_path, hand):
    """The same key: here by the clock, from another machine as long as it does not change."""
    hand.board.met = True  # a job with a name
    hand.board.logs.mkdir(exist_ok=True)
    own = hand.launch(1, 0)
    left = {"session": "k", "status": "crashed", "exit_code": 1}

    def write(name, rank, **changes):
        write_beat(hand.board.logs / name, replace(BEAT, rank=rank, **(left | changes)))

    write(start_name(1, "k"), 1, machine=identity(), clock=own.born - 1)
    write(start_name(2, "k"), 2, machine="another")
    peers = Peers(own, [1, 2])
    peers.look(2.0)
    assert peers.last == {1: None, 2: None}
    hand.beats(1, 1)
    write(start_name(2, "k"), 2, machine="another", number=2, status="runs", exit_code=0)
    peers.look(2.0)
    assert [beat.status for beat in peers.last.values()] == ["runs", "runs"]
    write(heartbeat_name(2), 2, session="k_2026", machine="another", number=3, clock=NOW)
    peers.look(2.0)
    assert peers.last[2].number == 3, "it has met the others already"


def test_a_rank_that_nobody_here_could_see_is_not_missed(tmp_path):
    board = Board(tmp_path, frozenset({1}), everywhere=True)
    board.logs = tmp_path / "run" / "logs"
    limits, peers = Limits(3, 600, 600, start=8), Peers(Launch(board, 0, "k", NOW), [1, 2])
    for _ in range(10):
        peers.look(1.0)
    assert peers.lost(limits, 1.0) == {1}
    board.logs.mkdir(parents=True)
    for _ in range(10):
        peers.look(1.0)
    assert peers.lost(limits, 1.0) == {1, 2}, "all write there"


def test_what_was_moved_is_written_to_where_it_is(tmp_path):
    """Another run has its name now."""
    board = Board(None, everywhere=True)
    board.logs = tmp_path / "run" / "logs"
    board.logs.mkdir(parents=True)
    board.hold()
    (tmp_path / "run").rename(tmp_path / "aside")
    (tmp_path / "run" / "logs").mkdir(parents=True)
    write_beat(Session(board, 0, "s").path, BEAT)
    assert Claim(board, Session(board, 0, "s")).take(0)
    assert len(list((tmp_path / "aside" / "logs").iterdir())) == 2
    assert not list((tmp_path / "run" / "logs").iterdir())
    assert boards.real(board.logs) == tmp_path / "aside" / "logs"
