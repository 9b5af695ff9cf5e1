"""The arithmetic of the signals' cost, and that its steps are the ones it says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pretrain.analysis.bench_signals import kinds, measure_signals, share_of_time, signals_text
from pretrain.errors import ConfigError


def test_share_of_the_time():
    """49 steps of 1 s and one of 1.5 s: half a second of 50.5."""
    assert share_of_time(1.5, 50) == pytest.approx(0.5 / 50.5)
    assert share_of_time(1.0, 50) == 0


def trainer_of(interval):
    monitors = SimpleNamespace(interval=interval)
    return SimpleNamespace(experiment=SimpleNamespace(monitors=monitors, name="x"), spec=None)


@pytest.mark.parametrize("interval", [0, 1])
def test_an_interval_that_leaves_nothing_to_compare(interval):
    with pytest.raises(ConfigError, match=rf"monitors\.interval = {interval}"):
        kinds(trainer_of(interval), lambda: None, each=False)


def test_kinds_take_turns_in_rounds():
    """Each once a round, around the same training step; warm-up does not count."""
    done = []

    class Depth:
        def on_step_begin(self, trainer, step):
            done.append(("begin", step))

        def on_step_end(self, trainer, report):
            done.append(("end", report.step))

    class Clock:
        def together(self, action):
            action()
            return None, len(done)

    engine = SimpleNamespace(needs_data=True, train_step=lambda batches, lr: done.append((batches, lr)))
    trainer = SimpleNamespace(engine=engine, loader=SimpleNamespace(next=lambda: "batch"))
    chosen = {"plain": (None, 0), "sampled": (Depth(), 50)}
    spent = measure_signals(trainer, chosen, Clock(), rounds=2, warmup=1)
    plain, sampled = [("batch", 0.0)], [("begin", 50), ("batch", 0.0), ("end", 50)]
    assert done == plain + sampled + sampled + plain + plain + sampled
    assert spent == {"plain": [8, 9], "sampled": [7, 12]}


@pytest.mark.parametrize(("sampled", "met"), [(1.3, "met"), (1.7, "not met")])
def test_the_text_says_whether_the_bounds_are_met(sampled, met):
    ratio = {"median": sampled, "low": 1.1, "high": 1.8, "confidence": 0.96}
    report = {
        "recipe": "deep",
        "layers": 1000,
        "default_interval": 50,
        "seconds": {"plain": [2.0, 3.0, 4.0]},
        "ratios": {"unsampled": ratio | {"median": 1.0}, "sampled": ratio},
        "cpu_ratios": {"unsampled": {"median": 1.0}, "sampled": {"median": 1.2}},
        "share_of_time": share_of_time(sampled, 50),
        "bounds": {"sampled": 1.5, "share_of_time": 0.02},
    }
    text = signals_text(report)
    assert "1000 layers" in text
    assert f"{sampled:.3f} plain steps (1.100 to 1.800, 96%); bound 1.5: {met}; CPU time 1.200" in text
    assert "of the time; bound 2%: met" in text
