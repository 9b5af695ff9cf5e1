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
    print(outcomes, sum(seconds for *_, seconds in results), max(results, key=lambda r: r[2]))
    assert not wrong, "\n".join([f"{len(wrong)} of {len(results)}", *wrong])
    assert len(results) >= 300
    assert min(outcomes[outcome] for outcome in ("whole", "set aside", "refused")) >= 10, outcomes


GOES_ON = [
    "index.json is a link to a device",
    "index.json: tensors/*/pieces/0/at = 3",
    "training.json: callbacks = {}",
    "training.json: progress/seconds = nan",
    "callbacks/DepthSignals = {'NormInputs': {'first': {'a': [1.0]}}}",
    "callbacks/Verdicts/history = {'zeros': {'encoder': [1]}, 'gradients': {'encoder': [[1.0]]}}",
]
IS_REFUSED = [
    "training.json: data = {}",
    "callbacks/Policy/rate = [1, 2]",
    "callbacks/Continuity = {'step': 5}",
    "callbacks/Checkpoints/saved_step = 'x'",
]
"""Ends of cases' names."""


@pytest.mark.parametrize(("name", "code"), [*((name, 0) for name in GOES_ON), *((name, 2) for name in IS_REFUSED)])
def test_whole_sessions(name, code, run, tmp_path):
    """Two ranks say the same: they go on to the last step, or rank 0 says in one line why not."""
    folder, argv = run
    argv = [*argv, "parallel.pipeline_stages=2"]
    group = Group(session_on_a_crafted_file, 2, argv, str(folder), str(tmp_path), name, SEED)
    assert group.results() == [code] * 2, group.output()
    said = group.output()
    assert "Traceback" not in said + group.output(1)
    if code:
        assert said.startswith("error: ")
        assert len(said.splitlines()) == 1
