"""Checkpoints that come from others: damaged, swapped, crafted and signed again. Each ends in one of three ways."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from harness import Group, train
from targets_fuzz import session_on_a_crafted_file, session_over_all_cases

SEED = 10


@pytest.fixture(scope="module")
def run(small_recipe, tmp_path_factory):
    """Two stages, checkpoints at steps 2 and 4, not summed up: as if it was killed after the last save."""
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    argv = ["--recipe", str(small_recipe), "train.max_steps=6", "checkpoint.interval=2", "monitors.interval=2"]
    argv += ["evaluation.interval=2"]
    train([*argv, f"run.dir={folder}", "train.stop_at_step=4", "parallel.pipeline_stages=2"], 2)
    (folder / "summary.json").unlink()
    return folder, argv


def test_every_file_that_somebody_may_hand_over(run, tmp_path):
    """In one process within 1 GiB: the judgement, all tensors, and the state of trainer and callbacks."""
    folder, argv = run
    group = Group(session_over_all_cases, 1, [*argv, f"run.dir={folder}"], str(tmp_path), SEED)
    assert group.results(500.0) == [2]
    assert "all cases were tried" in group.output()
    results = json.loads((tmp_path / "results").read_text())
    outcomes = Counter(outcome for _, outcome, _ in results)
    wrong = [f"{name}: {outcome}" for name, outcome, _ in results if outcome not in ("whole", "set aside", "refused")]
    assert not wrong, "\n".join([f"{len(wrong)} of {len(results)}", *wrong])
    assert len(results) >= 300
    assert min(outcomes[outcome] for outcome in ("whole", "set aside", "refused")) >= 10, outcomes


# (end of the case's name, exit code, ranks)
SESSIONS = [
    ("index.json is a link to a device", 0, 2),
    ("index.json: tensors/*/pieces/0/at = 3", 0, 1),
    ("callbacks/DepthSignals = {'NormInputs': {'first': {'a': [1.0]}}}", 0, 1),
    ("callbacks/Verdicts/history = {'zeros': {'encoder': [1]}, 'gradients': {'encoder': [[1.0]]}}", 0, 1),
    ("config.yaml is a bomb", 0, 1),
    ("training.json: data = {}", 2, 1),
    ("callbacks/Policy/rate = [1, 2]", 2, 2),
    ("callbacks/Continuity = {'step': 5}", 2, 2),
    ("config.yaml is of another program", 2, 1),
]


@pytest.mark.parametrize(("name", "code", "ranks"), SESSIONS)
def test_whole_sessions(name, code, ranks, run, tmp_path):
    """They go on to the last step, or rank 0 says in one line why not; two ranks in two stages end alike."""
    folder, argv = run
    argv = [*argv, f"parallel.pipeline_stages={ranks}"]
    group = Group(session_on_a_crafted_file, ranks, argv, str(folder), str(tmp_path), name, SEED)
    assert group.results() == [code] * ranks, group.output()
    said = group.output()
    assert "Traceback" not in said + group.output(ranks - 1)
    if code:
        assert said.startswith("error: ")
        assert len(said.splitlines()) == 1
