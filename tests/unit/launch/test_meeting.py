"""Processes that find each other, with strangers at their ports."""

from __future__ import annotations

import itertools
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from pretrain.errors import RanksMissing, UserError
from pretrain.launch import meeting
from pretrain.launch.environment import free_port
from pretrain.launch.place import RankEnvironment

WORLD = 3
STORE = 4711


@contextmanager
def stranger(kind: str) -> Iterator[int]:
    """A program that listens at a port and answers in a way of its own; yields the port."""
    kept: list[socket.socket] = []

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                caller, _ = listener.accept()
            except OSError:
                return
            if kind == "silent":
                kept.append(caller)
                continue
            with caller:
                caller.recv(100)
                if kind == "http":
                    caller.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    for caller in kept:
        caller.close()


def places(*ports: int, job: str = "job") -> list[RankEnvironment]:
    first, *spare = ports
    zero = RankEnvironment(0, WORLD, 0, WORLD, "127.0.0.1", first, "slurm", job, tuple(spare))
    return [replace(zero, rank=rank, local_rank=rank) for rank in range(WORLD)]


def meet(found: list[RankEnvironment]) -> list[int]:
    """What each rank but 0 was told; those that ask come before rank 0 has opened its door."""
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(meeting.ask, place, 30.0) for place in found[1:]]
        door = meeting.open_door(found[0])
        meeting.receive(door, found[0], STORE, 30.0)
        return [future.result(timeout=30) for future in asked]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(meeting, "ANSWER_SECONDS", (0.2, 20.0))
    monkeypatch.setattr(meeting, "CALLER_SECONDS", 5.0)
    monkeypatch.setattr(meeting, "PAUSE", 0.01)


def test_all_are_told():
    assert meet(places(free_port())) == [STORE] * (WORLD - 1)


@pytest.mark.parametrize("kinds", [["silent"], ["closes"], ["http"], ["http", "closes"]])
def test_a_derived_port_in_use_is_replaced_by_the_next_on_all_ranks(kinds):
    with ExitStack() as stack:
        taken = [stack.enter_context(stranger(kind)) for kind in kinds]
        assert meet(places(*taken, free_port())) == [STORE] * (WORLD - 1)


def test_two_jobs_that_derived_the_same_ports_do_not_mix():
    ports = free_port(), free_port()
    with ThreadPoolExecutor() as pool:
        first = places(*ports, job="one")
        door = meeting.open_door(first[0])
        serving = pool.submit(meeting.receive, door, first[0], 1111, 30.0)
        assert meet(places(*ports, job="two")) == [STORE] * (WORLD - 1)
        assert [meeting.ask(place, 30.0) for place in first[1:]] == [1111] * (WORLD - 1)
        serving.result(timeout=30)


def test_a_rank_is_let_in_once():
    """Of two jobs that were given the same port, the one that was there keeps it for its own ranks."""
    found = places(free_port(), job="")
    door = meeting.open_door(found[0])
    with ThreadPoolExecutor() as pool:
        serving = pool.submit(meeting.receive, door, found[0], STORE, 30.0)
        assert meeting.ask(found[1], 30.0) == STORE
        assert isinstance(meeting._ask_at(found[1], found[1].master_port, 5.0), meeting.Stranger)
        assert meeting.ask(found[2], 30.0) == STORE
        serving.result(timeout=30)


@pytest.mark.parametrize(
    ("launcher", "cure"),
    [("deepspeed", "deepspeed --master_port"), ("slurm", "unset it"), ("mpirun", "unset it")],
)
def test_a_stated_port_in_use_is_one_line(launcher, cure):
    with stranger("silent") as taken, pytest.raises(UserError) as caught:
        meeting.open_door(replace(places(taken)[0], launcher=launcher))
    assert re.fullmatch(rf"MASTER_PORT={taken} is in use on .*{cure}.*", str(caught.value))
    assert caught.value.exit_code == 2


def test_no_derived_port_free_is_one_line():
    with stranger("http") as one, stranger("http") as two, pytest.raises(UserError, match=f"{one}, {two} is in use"):
        meeting.open_door(places(one, two)[0])


def test_who_asks_a_stranger_gives_up_with_a_line():
    times = itertools.count(step=8.0)
    with stranger("http") as taken, pytest.raises(UserError, match="rank 1 does not find rank 0") as caught:
        meeting.ask(places(taken)[1], 600.0, clock=lambda: next(times))
    assert f":{taken} (another program listens there)" in str(caught.value)
    assert next(times) < 100.0, "long before the patience is over: rank 0 cannot be there"
    assert (caught.value.of_this_rank, caught.value.exit_code) == (True, 2)
    with pytest.raises(RanksMissing, match="refused"):
        meeting.ask(places(free_port())[1], 0.1)


def test_who_does_not_answer_may_be_rank_0_on_a_busy_machine():
    times = itertools.count(step=100.0)
    with stranger("silent") as taken, pytest.raises(RanksMissing, match=r"rank 1 does not find rank 0.*timed out"):
        meeting.ask(places(taken)[1], 300.0, clock=lambda: next(times))
    assert next(times) >= 400.0


def test_who_broke_off_is_let_in_when_it_comes_again():
    found = places(free_port())
    door = meeting.open_door(found[0])
    with ThreadPoolExecutor() as pool:
        with socket.create_connection(("127.0.0.1", found[0].master_port)) as call:
            call.sendall(meeting._request(found[0], 1).encode())
        serving = pool.submit(meeting.receive, door, found[0], STORE, 30.0)
        assert [meeting.ask(place, 30.0) for place in found[1:]] == [STORE] * (WORLD - 1)
        serving.result(timeout=30)


def test_rank_0_names_who_did_not_come():
    found = places(free_port())
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(meeting.ask, found[1], 30.0)
        with pytest.raises(RanksMissing, match="rank 2 of 3 did not come"):
            meeting.receive(meeting.open_door(found[0]), found[0], STORE, 1.0)
        assert asked.result(timeout=30) == STORE
