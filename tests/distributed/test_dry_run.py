"""`--dry-run` says what would run, and touches no run."""

from __future__ import annotations

import json

from harness import Group, lines, refused, train, train_main


def printed(argv) -> str:
    group = Group(train_main, 1, argv)
    assert group.results() == [0], group.output()
    return group.output()


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_with_another_run_is_remarked_on(command, tmp_path):
    train(command("run", "train.stop_at_step=1"))
    other = command("run", "model.hidden_size=16", "optimizer.lr=0.5")
    assert "model.hidden_size differs from the run in" in refused(other)
    before = contents(tmp_path / "run")
    text = printed([*other, "--dry-run"])
    assert "hidden_size: 16" in text
    assert "remark      training would be refused: model.hidden_size differs from the run in" in text
    assert "(and 1 more)" in text
    for resume, expected in (("never", "holds a run"), ("must", "differs from the run")):
        assert expected in printed([*other, "--dry-run", "--resume", resume])
    assert contents(tmp_path / "run") == before
    assert "remark" not in printed([*command("run", "train.stop_at_step=1"), "--dry-run"])


def test_nothing_is_made(command, tmp_path):
    cache = f"run.cache={tmp_path / 'cache'}"
    text = printed(command("run", "--dry-run", "--resume", "must", cache))
    assert "remark      training would be refused: --resume must" in text
    assert f"data        to be built in {tmp_path / 'cache'}: one reading of data.train, a tokenizer of 800" in text
    assert list(tmp_path.iterdir()) == []


def test_it_says_what_the_run_then_has(command, tmp_path):
    train(command("run", "train.stop_at_step=1"))
    text = printed(command("run", "train.stop_at_step=1", "--dry-run"))
    parameters = json.loads((tmp_path / "run" / "summary.json").read_text())["parameters"]
    assert f"parameters  {parameters:,}\n" in text
    (step,) = [line for line in lines(tmp_path / "run" / "metrics.jsonl") if "tokens" in line]
    assert f"; {step['tokens']:,} tokens\n" in text
    assert "data        ready" in text
