"""Who is named when training stands still."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from pretrain.errors import EXIT_CRASHED, EXIT_HANG
from pretrain.resilience.claim import Claim
from pretrain.resilience.diagnosis import diagnose, waits_in
from pretrain.resilience.heartbeat import Beat, Peers, process_gone, read_beat, write_beat

BEAT = Beat(
    session="s",
    rank=0,
    host="h",
    pid=100,
    number=1,
    step=7,
    phase="step",
    layer="decoder.layers.2",
    direction="forward",
    micro_batch=1,
    marks=50,
    still=61.0,
    overdue=True,
    waits_in="all_reduce",
)


def beats(*changes: dict) -> dict[int, Beat | None]:
    return {rank: replace(BEAT, rank=rank, pid=100 + rank, **change) for rank, change in enumerate(changes)}


def test_a_silent_rank_comes_before_one_that_computes():
    verdict = diagnose(beats({"waits_in": ""}, {}, {"layer": "", "phase": "checkpoint"}), {2}, 61)
    assert (verdict.ranks, verdict.exit_code) == ((2,), EXIT_HANG)
    assert verdict.reason == "rank 2 (process 102 on h) stopped answering (step 7, checkpoint, micro-batch 1)"
    assert [entry["answers"] for entry in verdict.reached] == [True, True, False]


def test_a_rank_that_never_beat():
    verdict = diagnose({0: BEAT, 1: None}, {1}, 61)
    assert verdict.reason == "rank 1 stopped answering (before its first sign of life)"


def test_the_one_outside_the_collective_is_named():
    verdict = diagnose(beats({}, {"waits_in": ""}, {}), set(), 61.4)
    assert verdict.ranks == (1,)
    assert (
        "stood still for 61 s (step 7, forward of decoder.layers.2, micro-batch 1); the others wait" in verdict.reason
    )


def test_where_all_wait_the_one_that_came_least_far_is_named():
    verdict = diagnose(beats({"marks": 60}, {"marks": 49}, {"step": 8, "marks": 1}), set(), 61)
    assert verdict.ranks == (1,)
    assert verdict.reason.startswith("every rank waits in a collective since 61 s; rank 1 ")


def test_a_crash_comes_first_and_gives_its_code():
    verdict = diagnose(beats({}, {"status": "crashed", "exit_code": 1}, {}), {2}, 3)
    assert (verdict.ranks, verdict.exit_code) == ((1,), EXIT_CRASHED)


def test_many_ranks_are_counted():
    verdict = diagnose(beats(*[{}] * 20), set(range(1, 20)), 61)
    assert "ranks 1, 2, 3, 4, 5, 6, 7, 8 and 11 more stopped answering" in verdict.reason
    assert len(verdict.ranks) == 19


def test_silence_is_counted_in_own_rounds_and_by_content(tmp_path: Path):
    peers = Peers(tmp_path, [1, 2], "s")
    write_beat(tmp_path, replace(BEAT, rank=1))
    write_beat(tmp_path, replace(BEAT, rank=2, session="an earlier one"))
    peers.look(2.0)
    assert (peers.silence, peers.last[2]) == ({1: 0.0, 2: 2.0}, None)
    peers.look(2.0)
    assert peers.silent(4.0) == {2}
    write_beat(tmp_path, replace(BEAT, rank=1, number=2))
    peers.look(2.0)
    assert peers.silence == {1: 0.0, 2: 6.0}
    write_beat(tmp_path, replace(BEAT, rank=1, number=3, status="ended"))
    peers.look(2.0)
    peers.look(2.0)
    assert peers.silence[1] == 0.0, "who is done need not beat"


def test_a_shorter_beat_leaves_nothing_of_a_longer_one(tmp_path: Path):
    write_beat(tmp_path, replace(BEAT, layer="x" * 2000))
    write_beat(tmp_path, BEAT)
    assert read_beat(tmp_path, 0, "s") == BEAT
    (tmp_path / "heartbeat_rank_0.json").write_text('{"session": "s"')
    assert read_beat(tmp_path, 0, "s") is None


def test_a_dead_process_is_seen_only_on_this_host():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet collected by its parent
    assert process_gone(replace(BEAT, pid=pid), "h")
    os.waitpid(pid, 0)
    assert process_gone(replace(BEAT, pid=pid), "h")
    assert not process_gone(replace(BEAT, pid=pid), "another")
    assert not process_gone(replace(BEAT, pid=os.getpid()), "h")


def test_one_speaks_and_may_withdraw(tmp_path: Path):
    first, second = Claim(tmp_path, "s"), Claim(tmp_path, "s")
    assert first.take(3)
    assert first.take(3), "it has it"
    assert not second.take(4)
    assert (second.holder(), second.exit_code()) == (3, None)
    second.withdraw()
    assert first.path.exists(), "it was not its own"
    first.withdraw()
    assert second.take(4)
    first.next()
    assert first.take(3), "after the second's death"
    first.pronounce(3, diagnose({0: BEAT}, set(), 61))
    second.next()
    assert second.exit_code() == EXIT_HANG


@pytest.mark.parametrize(("file", "found"), [("/x/torch/distributed/distributed_c10d.py", "f"), ("/x/torch/nn.py", "")])
def test_the_collective_is_the_innermost_frame(file, found):
    space: dict = {}
    exec(compile("import sys\ndef f(): return sys._getframe()", file, "exec"), space)
    frames = {1: space["f"](), 2: sys._getframe()}
    assert waits_in(frames, own=threading.get_ident()) == found
    assert waits_in(frames, own=1) == ""
