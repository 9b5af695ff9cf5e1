"""TensorBoard shows what metrics.jsonl has, and layers.jsonl in summary."""

from __future__ import annotations

import pytest
from harness import lines, train


def test_scalars_equal_the_logged_metrics(command, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    argv = command("run", "monitors.tensorboard=true")
    train([*argv, "train.stop_at_step=5"])
    train(argv)
    scalars = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    logged = lines(tmp_path / "run" / "metrics.jsonl")
    for name in ("loss", "lr", "grad_norm", "validation_loss"):
        expected = {entry["step"]: entry[name] for entry in logged if name in entry}
        shown = {event.step: event.value for event in scalars.Scalars(name)}
        assert shown == pytest.approx(expected, rel=1e-6), name

    samples = lines(tmp_path / "run" / "layers.jsonl")
    for name, of in {"worst": max, "worst_layer": lambda rows: rows.index(max(rows))}.items():
        expected = {entry["step"]: of(entry["signals"]["update_norm"]["encoder"]) for entry in samples}
        shown = {event.step: event.value for event in scalars.Scalars(f"update_norm/encoder/{name}")}
        assert shown == pytest.approx(expected, rel=1e-6), name
