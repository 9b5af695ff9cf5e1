"""How the processes of a job find each other: rank 0 waits at a port that all know and tells where its store is.

The store itself takes whatever port is free. So the known one is needed for a moment only, and where it was derived
from the job's number and is in use, the next one is as good. Who calls says for which job, so that neither another
program nor another job is taken for rank 0.
"""

from __future__ import annotations

import errno
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from pretrain.errors import RanksMissing, UserError
from pretrain.launch.place import RankEnvironment

GREETING, THANKS = "kilolayer", "thanks\n"
CALLER_SECONDS = 20.0
"""Rank 0 waits so long for the words of one that has called."""
ANSWER_SECONDS = (2.0, 20.0)
"""Rank 0 answers at once, unless its machine is very busy: rounds wait twice as long each, up to the second."""
STRANGER_SECONDS = 20.0
"""Where others answer at every port for so long, rank 0 cannot be there."""
REMARK_SECONDS = 60.0
PAUSE = 0.2


def open_door(place: RankEnvironment) -> socket.socket:
    """The socket at which rank 0 waits for the others: at the first port that is free.

    Raises:
        UserError: none is, or it may not be opened.
    """
    problem: OSError | None = None
    for number in place.ports:
        try:
            return _listen(number)
        except OSError as error:
            problem = error
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
    what = "is in use" if problem and problem.errno == errno.EADDRINUSE else "may not be opened by this user"
    where = f"on {socket.gethostname()}, the host of rank 0"
    if place.spare_ports:
        raise UserError(f"each of the ports {', '.join(map(str, place.ports))} {what} {where}: set MASTER_PORT")
    cure = {
        "deepspeed": "give a free one (deepspeed --master_port N, torchrun --master-port N)",
        "single": "set another",
    }.get(place.launcher, "unset it, so that a free one is chosen, or set another")
    raise UserError(f"MASTER_PORT={place.master_port} {what} {where}: {cure}")


def receive(door: socket.socket, place: RankEnvironment, store_port: int, patience: float) -> None:
    """Tell every other rank the store's port, as it comes; then close the door.

    Args:
        store_port: where rank 0's store listens.
        patience: seconds until the last must have come.

    Raises:
        RanksMissing: naming those that have not.
    """
    absent, start, remarked = set(range(1, place.world_size)), time.monotonic(), False
    with door:
        door.settimeout(1.0)
        while absent:
            waited = time.monotonic() - start
            whom = f"rank{'s' * (len(absent) > 1)} {', '.join(map(str, sorted(absent)[:8]))}"
            whom += f" and {len(absent) - 8} more" if len(absent) > 8 else ""
            at = f"{place.master_addr}:{door.getsockname()[1]}"
            if waited > patience:
                raise RanksMissing(f"{whom} of {place.world_size} did not come to {at} within {patience:.0f} s")
            if waited > REMARK_SECONDS and not remarked:
                print(f"waiting for {whom} of {place.world_size} at {at}", file=sys.stderr, flush=True)
                remarked = True
            with suppress(OSError):  # also the time-out; who breaks off comes again
                absent -= _answer(door, place, absent, store_port)


def ask(place: RankEnvironment, patience: float, clock: Callable[[], float] = time.monotonic) -> int:
    """The port of rank 0's store.

    Args:
        patience: seconds until rank 0 must have been found.
        clock: tells the seconds.

    Raises:
        UserError: others listen at every port where rank 0 could.
        RanksMissing: rank 0 was not found.
    """
    start = hoped = clock()
    seconds, longest = ANSWER_SECONDS
    while True:
        answers = [_ask_at(place, number, seconds) for number in place.ports]
        for answer in answers:
            if isinstance(answer, int):
                return answer
        seconds, now = min(2 * seconds, longest), clock()
        if not all(isinstance(answer, Stranger) for answer in answers):
            hoped = now
        lost = f"rank {place.rank} does not find rank 0 at {place.master_addr}:{place.master_port} ({answers[0]})"
        error: UserError | None = None
        if now - hoped > STRANGER_SECONDS:
            error = UserError(f"{lost}: set another MASTER_PORT")
        elif now - start > patience:
            error = RanksMissing(f"{lost}: MASTER_ADDR must be rank 0's host, and the port open between the hosts")
        if error is not None:
            error.of_this_rank = place.local_rank == 0 or place.rank == 1  # one line a host
            raise error
        time.sleep(PAUSE)


class Stranger(Exception):
    """What answers is not rank 0 of this job."""


def _listen(number: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", number), family=family, backlog=4096, dualstack_ipv6=both)


def _answer(door: socket.socket, place: RankEnvironment, absent: set[int], store_port: int) -> set[int]:
    """Let one caller in; its rank, or nothing if it is a stranger or has broken off."""
    caller, _ = door.accept()
    with caller:
        caller.settimeout(CALLER_SECONDS)
        said = _line(caller)
        for rank in absent:
            if said == _request(place, rank):
                caller.sendall(f"{GREETING} {store_port}\n".encode())
                return {rank} if _line(caller) == THANKS else set()
    return set()


def _ask_at(place: RankEnvironment, number: int, seconds: float) -> int | OSError | Stranger:
    """The store's port; or why there is no answer from rank 0 at this port within so many seconds."""
    try:
        call = socket.create_connection((place.master_addr, number), timeout=seconds)
        with call:
            call.sendall(_request(place, place.rank).encode())
            greeting, _, port = _line(call).partition(" ")
            if greeting == GREETING:
                call.sendall(THANKS.encode())
                return int(port)
    except ConnectionResetError:  # by who has not read what was said
        pass
    except OSError as error:
        return error
    return Stranger("another program listens there")


def _request(place: RankEnvironment, rank: int) -> str:
    return f"{GREETING} {place.job or '-'} {rank} {place.world_size}\n"


def _line(connection: socket.socket) -> str:
    """One line of at most 1000 bytes."""
    data = b""
    while not data.endswith(b"\n") and len(data) < 1000:
        more = connection.recv(1000)
        if not more:
            break
        data += more
    return data.decode(errors="replace")
