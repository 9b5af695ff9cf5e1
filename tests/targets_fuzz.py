"""A session that tries to go on from each of the files of fuzz_cases.py."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import resource
import signal
import time
import traceback
from pathlib import Path
from typing import Any

from fuzz_cases import CONFIG, MANIFEST, cases
from harness import train_main

ROOM = 2**30
"""Bytes that a session may take while it judges and loads."""


def clone(checkpoints: Path, target: Path) -> Path:
    """A copy whose files are the same ones, by other names."""
    target.mkdir(parents=True)
    for path in sorted(checkpoints.rglob("*")):
        place = target / path.relative_to(checkpoints)
        if path.is_dir():
            place.mkdir()
        else:
            os.link(path, place)
    return target


def session_over_all_cases(rank: int, argv: list[str], work: str, seed: int) -> int:
    """Starts as a session does, then tries to go on from each case; writes [name, outcome, seconds] to work/results."""
    from pretrain import build
    from pretrain.errors import UserError

    def enter(plan: Any, session: Any, resumes: bool) -> None:
        results = []
        held = _held(session.folder.checkpoints)
        soft = _address_space() + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (soft, resource.RLIM_INFINITY))
        signal.signal(signal.SIGALRM, _too_long)
        for number, (name, same, change) in enumerate(cases(seed)):
            run = Path(work) / f"case_{number}"
            checkpoints = clone(session.folder.checkpoints, run / "checkpoints")
            change(max(checkpoints.glob("step_*")), random.Random(f"{seed} {number}"))
            start = time.process_time()
            signal.alarm(20)
            try:
                if number % 10 == 0 or name.startswith((CONFIG, MANIFEST)):
                    _look(plan, run)
                outcome = _outcome(session, run, held if same else {})
            except BaseException:
                outcome = traceback.format_exc()
            signal.alarm(0)
            results.append([name, outcome, time.process_time() - start])
            (Path(work) / "results").write_text(json.dumps(results))
        raise UserError("all cases were tried")

    build.enter = enter  # type: ignore[assignment]
    return train_main(rank, argv)


def session_on_a_crafted_file(rank: int, argv: list[str], run: str, work: str, name: str, seed: int) -> int:
    """A whole session on a copy of `run` with the case of that name."""
    (change,) = [change for case, _, change in cases(seed) if case.endswith(name)]
    folder = Path(work)
    if rank == 0:
        checkpoints = clone(Path(run) / "checkpoints", folder / "copy" / "checkpoints")
        change(max(checkpoints.glob("step_*")), random.Random(name))
        (folder / "copy").rename(folder / "run")
    while not (folder / "run").exists():
        time.sleep(0.01)
    return train_main(rank, [*argv, f"run.dir={folder / 'run'}"])


def _too_long(*_: Any) -> None:
    raise TimeoutError("the case takes too long")


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _digests(checkpoint: Any) -> dict[str, str]:
    """Every tensor that a resume reads, by a hash."""
    quantities = [quantity for quantity in ("weight", "exp_avg", "exp_avg_sq") if checkpoint.has(quantity)]
    return {
        f"{name} {quantity}": hashlib.sha256(checkpoint.read(name, quantity).numpy().tobytes()).hexdigest()
        for name in checkpoint.index.names()
        for quantity in quantities
    }


def _held(checkpoints: Path) -> dict[int, dict[str, str]]:
    from pretrain.state.reader import Checkpoint, list_checkpoints

    found = [Checkpoint(folder) for folder in list_checkpoints(checkpoints)]
    return {checkpoint.step: _digests(checkpoint) for checkpoint in found}


def _look(plan: Any, run: Path) -> None:
    """As `list` and the start of a session look at the folder."""
    from pretrain.build import Request, session_problem
    from pretrain.checkpoint.survey import survey
    from pretrain.errors import UserError

    survey(run)
    section = plan.experiment.run.model_copy(update={"dir": str(run)})
    with contextlib.suppress(UserError):
        session_problem(plan.experiment.model_copy(update={"run": section}), Request())


def _outcome(session: Any, run: Path, held: dict[int, dict[str, str]]) -> str:
    """ "whole", "set aside", "refused" (one line), or what is wrong with that."""
    from pretrain.checkpoint.restore import newest_good, resume
    from pretrain.checkpoint.survey import verify
    from pretrain.errors import UserError

    newest = max((run / "checkpoints").glob("step_*"))
    ((_, verdict),) = verify(newest)
    try:
        found, problems = newest_good(run / "checkpoints")
        if (found.folder == newest) == bool(verdict):
            return f"verify says {verdict}, loading takes {found.folder.name}"
        if (digests := _digests(found)) != held.get(found.step, digests):
            return "other tensors than were saved"
        session.loader._skipped = []  # of the case before
        resume(session, found)
    except UserError as error:
        return "refused" if len(str(error).splitlines()) == 1 else f"more than one line: {error}"
    if any(len(line.splitlines()) != 1 for line in problems):
        return f"more than one line: {problems}"
    return "set aside" if problems else "whole"
