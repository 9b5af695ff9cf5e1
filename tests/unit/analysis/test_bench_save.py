"""The benchmark of saves: what it counts and what it says; the times themselves are not looked at."""

from __future__ import annotations

import pytest
import torch
from checkpoints_by_hand import TRAINING, HandEngine

from pretrain.analysis.bench_clock import RankClock
from pretrain.analysis.bench_save import Held, SaveTimes, measure_saves, saves_report, saves_text, state_bytes
from pretrain.checkpoint.save import Saver
from pretrain.state.reader import Checkpoint, list_checkpoints


@pytest.mark.parametrize("steps", [True, False])
def test_it_saves_in_pairs_after_one_of_each(steps, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    engine, done, waits = HandEngine(), [], []
    begin, wait = Saver.begin, Saver.wait

    def begun(saver, *args):
        begin(saver, *args)
        waits.append("begin")

    def waited(saver):
        waits.append("wait" if saver.running else "idle")
        wait(saver)

    monkeypatch.setattr(Saver, "begin", begun)
    monkeypatch.setattr(Saver, "wait", waited)

    def step():
        done.append(waits[-1])

    times = measure_saves(engine, lambda: TRAINING, step if steps else None, tmp_path, RankClock(1), pairs=3)
    assert waits.count("begin") == 8
    assert len(times.asynchronous) == len(times.synchronous) == 3
    assert len(times.beside) == len(times.alone) == 3 * steps
    assert done == ["begin", "wait", "wait", "begin", "begin", "wait", "wait", "begin"] * steps
    (newest,) = list_checkpoints(tmp_path)
    assert engine.holds(Checkpoint(newest))
    assert state_bytes(engine) == 3 * 4 * sum(torch.Size(shape).numel() for shape in engine.shapes.values())


@pytest.mark.parametrize(("stall", "verdict"), [(0.1, "met"), (0.5, "not met")])
def test_what_it_says(stall, verdict):
    times = SaveTimes([stall] * 6, [2.0] * 6, [3.0] * 6, [1.0] * 6)
    report = saves_report(times, 2**21, Held(100 * 2**20, 175 * 2**20, 180 * 2**20))
    assert report["ratio"]["median"] == stall / 2
    text = saves_text("demo", report)
    assert text.splitlines()[0] == "demo: 2 MiB of state, 6 pairs"
    assert f"bound 0.10: {verdict}" in text
    assert "holds 100 MiB after a step, at most 1.75 times that while saving and 1.80 while reading back" in text
    assert "holds" not in saves_text("demo", saves_report(times, 2**21))
    assert "a step takes 1.000 s, 3.000 s while a save is being written" in text
