"""Who is named when training stands still."""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from beats_by_hand import BEAT

from pretrain.errors import EXIT_CRASHED, EXIT_HANG
from pretrain.resilience.board import Board
from pretrain.resilience.claim import Claim
from pretrain.resilience.diagnosis import diagnose, waits_in
from pretrain.resilience.heartbeat import Beat, Peers, read_beat, write_beat
from pretrain.resilience.limits import Limits
from pretrain.resilience.machine import identity
from pretrain.resilience.sources import Session, heartbeat_name


def beats(*changes: dict) -> dict[int, Beat | None]:
    return {rank: replace(BEAT, rank=rank, pid=100 + rank, **change) for rank, change in enumerate(changes)}


def test_a_silent_rank_comes_before_one_that_computes():
    verdict = diagnose(beats({"waits_in": ""}, {}, {"layer": "", "phase": "checkpoint"}), {2}, 61)
    assert (verdict.ranks, verdict.exit_code) == ((2,), EXIT_HANG)
    assert verdict.reason == "rank 2 (process 102 on h) stopped answering (step 7, checkpoint, micro-batch 1)"
    assert [entry["answers"] for entry in verdict.reached] == [True, True, False]


def test_a_rank_that_never_beat():
    verdict = diagnose({0: BEAT, 1: None}, {1}, 61)
    assert verdict.reason == "no sign of life from rank 1 since 61 s"
    both = diagnose({0: BEAT, 1: None, 2: replace(BEAT, rank=2, pid=102)}, {1, 2}, 61)
    assert both.reason.startswith("rank 2 (process 102 on h) stopped answering (step 7, ")
    assert both.reason.endswith("; no sign of life from rank 1 since 61 s")


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


def session(folder: Path) -> Session:
    board = Board(None, everywhere=True)
    board.logs = folder
    return Session(board, 0, "s")


def beat_of(folder: Path, rank: int, **changes) -> None:
    write_beat(folder / heartbeat_name(rank), replace(BEAT, rank=rank, **changes))


def test_silence_is_counted_in_own_rounds_and_by_content(tmp_path: Path):
    peers = Peers(session(tmp_path), [1, 2])
    beat_of(tmp_path, 1)
    beat_of(tmp_path, 2, session="an earlier one")
    peers.look(2.0)
    assert (peers.silence, peers.last[2]) == ({1: 0.0, 2: 2.0}, None)
    peers.look(2.0)
    assert peers.silent(4.0) == {2}
    beat_of(tmp_path, 1, number=2)
    peers.look(2.0)
    assert peers.silence == {1: 0.0, 2: 6.0}
    beat_of(tmp_path, 1, number=3, status="ended")
    peers.look(2.0)
    peers.look(2.0)
    assert peers.silence[1] == 0.0, "who is done need not beat"


def test_a_shorter_beat_leaves_nothing_of_a_longer_one(tmp_path: Path):
    path = tmp_path / "beat"
    write_beat(path, replace(BEAT, layer="x" * 2000))
    write_beat(path, BEAT)
    assert read_beat(path) == BEAT
    path.write_text('{"session": "s"')
    assert read_beat(path) is None


def dead_process() -> int:
    """The number of one that is dead and not yet collected by its parent."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid


def test_a_dead_process_is_seen_only_on_this_machine(tmp_path: Path):
    pid = dead_process()
    beat_of(tmp_path, 1, pid=pid, machine=identity())
    beat_of(tmp_path, 2, pid=pid, machine="another")
    beat_of(tmp_path, 3, pid=os.getpid(), machine=identity())
    peers = Peers(session(tmp_path), [1, 2, 3])
    peers.look(2.0)
    assert peers.gone() == {1}
    os.waitpid(pid, 0)
    assert peers.gone() == {1}


def test_a_stopped_process_is_lost_sooner_than_one_that_may_be_slow(tmp_path: Path):
    """Rank 1 is dead, 2 stopped, 3 alive, 4 on another machine, 5 and 6 were never seen."""
    limits, dead, stopped = Limits(60, 600, 600, 300), dead_process(), os.fork()
    if stopped == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitid(os.P_PID, stopped, os.WSTOPPED | os.WNOWAIT)
    here = {"machine": identity(), "phase": "imports"}
    beat_of(tmp_path, 1, pid=dead, **here)
    beat_of(tmp_path, 2, pid=stopped, **here)
    beat_of(tmp_path, 3, pid=os.getpid(), **here)
    beat_of(tmp_path, 4, machine="another", phase="step")
    peers = Peers(session(tmp_path), range(1, 7))
    found = []
    for _ in range(32):
        peers.look(10.0)
        found.append(peers.lost(limits, 10.0))
    os.kill(stopped, signal.SIGKILL)
    os.waitpid(stopped, 0)
    os.waitpid(dead, 0)
    assert found[0] == set()
    assert found[1] == {1}
    assert found[5] == {1}
    assert found[6] == {1, 2, 4}
    assert found[28] == {1, 2, 4}
    assert found[30] == {1, 2, 3, 4, 5, 6}
    beat_of(tmp_path, 6, status="crashed", exit_code=1)
    peers.look(0.1)
    assert 6 in peers.lost(limits, 10.0)


def test_one_speaks_and_may_withdraw(tmp_path: Path):
    source = session(tmp_path)
    first, second = Claim(source.board, source), Claim(source.board, source)
    assert first.take(3)
    assert first.take(3), "it has it"
    assert not second.take(4)
    assert (second.holder(), second.verdict()) == (3, None)
    second.withdraw()
    assert first.holder() == 3, "it was not its own"
    first.withdraw()
    assert second.take(4)
    first.next()
    assert first.take(3), "after the second's death"
    first.pronounce(3, diagnose({0: BEAT}, set(), 61))
    second.next()
    assert second.verdict()["exit_code"] == EXIT_HANG


@pytest.mark.parametrize(("file", "found"), [("/x/torch/distributed/distributed_c10d.py", "f"), ("/x/torch/nn.py", "")])
def test_the_collective_is_the_innermost_frame(file, found):
    space: dict = {}
    exec(compile("import sys\ndef f(): return sys._getframe()", file, "exec"), space)
    frames = {1: space["f"](), 2: sys._getframe()}
    assert waits_in(frames, own=threading.get_ident()) == found
    assert waits_in(frames, own=1) == ""
