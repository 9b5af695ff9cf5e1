"""Reading a run's folder: whole, alive, killed, damaged, and not a run at all."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from pretrain.analysis.recorded_run import LayerSignal, read_run
from pretrain.errors import UserError

from .synthetic_runs import metric, signals, write_lines, write_run


def signal(run_path: Path, name: str, group: str) -> LayerSignal:
    return next(s for s in read_run(run_path).layers if (s.signal, s.group) == (name, group))


def test_whole_run(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    assert run.name == "demo"
    assert run.last_step == 20
    assert run.notes == []
    assert run.metrics["loss"].steps.tolist() == list(range(1, 21))
    assert run.metrics["loss"].values[0] == pytest.approx(7.9)
    assert run.metrics["validation_loss"].steps.tolist() == [20]
    assert "mfu" not in run.metrics  # null in every line: unknown, not zero
    assert run.summary["parameters"] == 4_812_032
    assert [event["event"] for event in run.events] == ["start", "save", "end"]


def test_depth_signals(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    cross = signal(path, "norm_input_rms", "decoder.cross_attention")
    assert cross.steps.tolist() == [1, 5, 10, 15, 20]
    assert cross.values.shape == (5, 8)
    np.testing.assert_allclose(cross.values[2], [1.1 * (1 + i / 10) for i in range(8)], rtol=1e-6)
    assert signal(path, "update_norm", "embeddings").layers == 1
    assert len(read_run(path).layers) == 8


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_half_written_last_line_is_dropped_in_silence(tmp_path: Path, cut: int) -> None:
    path = write_run(tmp_path / "run")
    lines = [metric(step) for step in range(1, 6)]
    write_lines(path / "metrics.jsonl", lines)
    text = (path / "metrics.jsonl").read_text() + json.dumps(metric(6))[:cut]
    (path / "metrics.jsonl").write_text(text)
    run = read_run(path)
    assert run.last_step == 5
    assert run.notes == []


def test_last_line_that_only_lacks_its_newline_counts(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    (path / "metrics.jsonl").write_text(json.dumps(metric(1)) + "\n" + json.dumps(metric(2)))
    assert read_run(path).last_step == 2


def test_damage_in_the_middle_is_left_out_and_told(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    good = [json.dumps(metric(step)).encode() for step in (1, 2, 3)]
    (path / "metrics.jsonl").write_bytes(
        b"\n".join([good[0], good[1][:30] + good[1], b"\xff\xfe\x00", b"[1]", good[2], b""])
    )
    run = read_run(path)
    assert run.metrics["loss"].steps.tolist() == [1, 3]
    assert run.notes == ["metrics.jsonl: 3 unreadable lines left out"]


def test_a_repeated_step_counts_as_logged_last(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    again = [metric(1), metric(2, loss=9.0), metric(3, loss=9.0), metric(2, loss=4.0), metric(3, loss=3.0)]
    write_lines(path / "metrics.jsonl", again)
    write_lines(
        path / "layers.jsonl", [{"step": step, "signals": signals(2, 2, value)} for step, value in ((5, 1.0), (5, 7.0))]
    )
    run = read_run(path)
    assert run.metrics["loss"].steps.tolist() == [1, 2, 3]
    assert run.metrics["loss"].values.tolist() == [7.9, 4.0, 3.0]
    assert signal(path, "update_norm", "encoder").values.tolist() == [[7.0, 7.7]]


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    words = [math.nan, math.inf, "NaN", "-Infinity", "what", 10**400]
    write_lines(path / "metrics.jsonl", [metric(step, loss=word) for step, word in enumerate(words, start=1)])
    sample = {"update_norm": {"encoder": [1.0, math.nan, None, "inf", [2]], "odd": 5, "none": [], "nested": [[1], [2]]}}
    write_lines(
        path / "layers.jsonl", [{"step": 1, "signals": sample}, {"step": 2, "signals": "gone"}, {"signals": {}}]
    )
    np.testing.assert_array_equal(
        read_run(path).metrics["loss"].values, [math.nan, math.inf, math.nan, -math.inf, math.nan, math.inf]
    )
    np.testing.assert_array_equal(
        signal(path, "update_norm", "encoder").values, [[1.0, math.nan, math.nan, math.inf, 2.0]]
    )
    assert [s.group for s in read_run(path).layers] == ["encoder", "odd", "nested"]
    np.testing.assert_array_equal(signal(path, "update_norm", "nested").values, [[1.0, 2.0]])


def test_of_several_heads_the_worst_speaks_for_the_layer(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    heads = [[1.0, 9.0, 2.0], [4.0, 3.0, -5.0]]
    figures = ("attention_logit_max", "attention_entropy_min", "scalar_alpha", "unknown")
    lines = [{"step": step, "signals": {name: {"encoder": heads} for name in figures}} for step in (1, 2)]
    write_lines(path / "layers.jsonl", lines)
    found = {name: signal(path, name, "encoder") for name in figures}
    assert found["attention_logit_max"].values.tolist() == [[9.0, 4.0]] * 2
    assert found["attention_entropy_min"].values.tolist() == [[1.0, -5.0]] * 2
    assert found["scalar_alpha"].values.tolist() == [[9.0, -5.0]] * 2  # the farthest from 0
    assert found["unknown"].values.tolist() == [[9.0, 4.0]] * 2
    for one in found.values():
        assert one.heads is not None
        assert one.heads.tolist() == [heads, heads]


@pytest.mark.parametrize("name", ["attention_logit_max", "attention_entropy_min", "scalar_alpha"])
def test_a_head_that_is_not_finite_is_the_worst(tmp_path: Path, name: str) -> None:
    path = write_run(tmp_path / "run")
    rows = {"full": [[1.0, None], [2.0, 3.0]], "ragged": [[1.0], [2.0, 2.0, 2.0]], "none": [[], []]}
    write_lines(path / "layers.jsonl", [{"step": 1, "signals": {name: rows}}])
    full, ragged, none = (signal(path, name, group) for group in rows)
    assert np.isnan(full.values[0, 0])
    assert full.values[0, 1] in (2.0, 3.0)
    assert ragged.values[0, 1] == 2.0
    assert np.isnan(none.values).all()


def test_samples_of_different_length_are_padded(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    rows = [{"step": 1, "signals": {"s": {"g": [1.0, 2.0, 3.0]}}}, {"step": 2, "signals": {"s": {"g": [4.0]}}}]
    write_lines(path / "layers.jsonl", rows)
    np.testing.assert_array_equal(signal(path, "s", "g").values, [[1, 2, 3], [4, math.nan, math.nan]])


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "\x00"])
def test_damaged_config_is_told(tmp_path: Path, text: str) -> None:
    path = write_run(tmp_path / "folder_name")
    (path / "config.yaml").write_text(text)
    (path / "summary.json").write_text('{"half": ')
    run = read_run(path)
    assert run.name == "folder_name"
    assert run.notes == [f"{name} could not be read and is left out" for name in ("config.yaml", "summary.json")]


def test_run_that_died_before_its_first_step(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    for name in ("metrics.jsonl", "layers.jsonl", "events.jsonl", "summary.json"):
        (path / name).unlink()
    run = read_run(path)
    assert (run.last_step, run.metrics, run.layers, run.events, run.summary) == (0, {}, [], [], {})


def test_not_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    for path, words in (
        (tmp_path / "nowhere", "no such run folder"),
        (tmp_path / "empty", "not a run folder"),
        (run / "metrics.jsonl", "is a file"),
    ):
        with pytest.raises(UserError, match=words) as raised:
            read_run(path)
        assert str(path) in str(raised.value)
        assert "\n" not in str(raised.value)
