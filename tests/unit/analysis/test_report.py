"""The report's page: what is embedded, how large it is, and that a browser draws it."""

from __future__ import annotations

import copy
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.analysis.compact import unpack_matrix
from pretrain.analysis.report import write_report
from pretrain.errors import UserError

from .synthetic_runs import CONFIG, embedded, metric, signals, write_lines, write_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def report(*runs: Path) -> dict[str, Any]:
    out = runs[0] / "report.html"
    write_report(list(runs), out)
    return embedded(out)


def matrix(run: dict[str, Any], signal: str, group: str) -> dict[str, Any]:
    return next(m for m in run["layers"] if (m["signal"], m["group"]) == (signal, group))


def deep_run(folder: Path, encoder: int, decoder: int, samples: int) -> Path:
    config = copy.deepcopy(CONFIG)
    config["model"] |= {"encoder_layers": encoder, "decoder_layers": decoder}
    path = write_run(folder, steps=20, config=config)
    generator = np.random.default_rng(0)
    shapes = {
        signal: {group: len(row) for group, row in groups.items()}
        for signal, groups in signals(encoder, decoder).items()
    }
    records = [
        {
            "step": 50 * i,
            "signals": {
                signal: {group: np.exp(generator.normal(size=size)).round(6).tolist() for group, size in groups.items()}
                for signal, groups in shapes.items()
            },
        }
        for i in range(1, samples + 1)
    ]
    write_lines(path / "layers.jsonl", records)
    return path


def test_embedded_data(tmp_path: Path) -> None:
    data = report(write_run(tmp_path / "run"))
    (run,) = data["runs"]
    assert run["label"] == "demo"
    assert run["model"] == "encoder-decoder · deepnorm · 6 + 8 layers · width 64 · FFN 128 · 2 heads · relu"
    assert run["status"] == "step 20 of 20 · max_steps reached"
    assert run["figures"] == {
        "step": 20,
        "loss": 6.0,
        "loss_mean": 6.95,
        "loss_mean_over": 20,
        "validation_loss": 5.25,
        "unigram_entropy": 5.72,
        "parameters": 4_812_032,
        "tokens_per_second": 2950.0,
        "mfu": None,
        "seconds": 11.5,
        "step_seconds": 0.5,
        "tokens": 48_000,
        "export_max_logit_difference_fp64": None,
        "export_max_logit_difference_saved": None,
    }
    assert run["metrics"]["validation_loss"] == {"steps": [20], "values": [5.25], "bad": [], "logged": 1}
    assert run["metrics"]["lr"]["values"][:2] == [0.0001, 0.0002]
    assert run["events"][1] == {
        "time": "2026-03-01T10:05:00Z",
        "step": 10,
        "event": "save",
        "details": {"seconds": "0.4"},
    }
    assert run["config"]["optimizer.betas"] == "[0.9, 0.98]"
    assert run["notes"] == []
    assert data["differences"] == []
    assert list(data["signals"]) == ["norm_input_rms", "update_norm"]


def test_depth_signals_round_trip(tmp_path: Path) -> None:
    (run,) = report(write_run(tmp_path / "run"))["runs"]
    ffn = matrix(run, "norm_input_rms", "decoder.ffn")
    assert ffn["steps"] == [1, 5, 10, 15, 20]
    expected = [[(1 + s / 100) * (1 + i / 10) for i in range(8)] for s in ffn["steps"]]
    np.testing.assert_allclose(unpack_matrix(ffn), expected, rtol=1e-4)


def test_a_live_run_is_told_from_its_logs(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    (path / "summary.json").unlink()
    write_lines(path / "events.jsonl", [{"time": "2026-03-01T10:00:00Z", "step": 0, "event": "start"}])
    (run,) = report(path)["runs"]
    assert run["status"] == "step 20 of 20 · no end logged: still running, or killed"
    assert run["figures"]["seconds"] == 10.0
    assert run["figures"]["tokens_per_second"] == 3000.0
    assert run["figures"]["validation_loss"] == 5.25
    assert run["figures"]["unigram_entropy"] is None


def test_not_finite_losses_keep_their_steps(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    bad = {4: math.nan, 7: math.inf, 20: math.nan}
    write_lines(path / "metrics.jsonl", [metric(s, loss=bad.get(s, 5.0)) for s in range(1, 21)])
    events = [
        {"step": 4, "event": "alert", "value": math.nan, "more": {"x": [math.inf]}},
        {"event": "odd", "step": "?"},
    ]
    write_lines(path / "events.jsonl", events)
    (run,) = report(path)["runs"]
    assert run["metrics"]["loss"]["bad"] == [4, 7, 20]
    assert set(run["metrics"]["loss"]["values"]) == {5.0}
    assert run["figures"]["loss"] == "nan"
    assert run["figures"]["loss_mean"] is None
    assert run["notes"] == ["loss is not finite at 3 steps, the first 4: red marks at the top of its plot"]
    assert run["events"][0]["details"] == {"value": "nan", "more": '{"x": ["inf"]}'}
    assert run["events"][1]["step"] is None


def test_comparison(tmp_path: Path) -> None:
    other = copy.deepcopy(CONFIG)
    other["name"] = "baseline"
    other["model"]["block"] = {"kind": "post_ln"}
    other["model"]["dropout"] = 0.1
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b", config=other)
    data = report(first, second, first)
    assert [run["label"] for run in data["runs"]] == ["demo", "baseline"]  # a run given twice is shown once
    assert data["differences"] == [
        {"key": "model.block.kind", "values": ["deepnorm", "post_ln"]},
        {"key": "model.dropout", "values": [None, "0.1"]},
    ]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    assert [run["label"] for run in report(a, b)["runs"]] == [f"demo ({a})", f"demo ({b})"]


def test_text_of_a_run_cannot_leave_the_data(tmp_path: Path) -> None:
    config = copy.deepcopy(CONFIG) | {"name": "</script><b>{{data}}"}
    path = write_run(tmp_path / "run", config=config)
    data = report(path)
    page = (path / "report.html").read_text()
    assert data["runs"][0]["label"] == config["name"]
    assert "</script><b>" not in page
    assert "<title>&lt;/script&gt;&lt;b&gt;{{data}}</title>" in page
    assert page.count("</script>") == 2


def test_page_needs_no_network(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    report(path)
    page = (path / "report.html").read_text()
    assert "default-src 'none'" in page
    assert re.findall(r"(?:https?:)?//[a-z0-9-]+\.[a-z]", page) == []
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []


def test_thousand_layers_stay_below_five_megabytes(tmp_path: Path) -> None:
    path = deep_run(tmp_path / "run", 500, 500, 200)
    write_lines(path / "metrics.jsonl", [metric(s, loss=7 / s, grad_norm=s % 97 / 7) for s in range(1, 10_001)])
    (run,) = report(path)["runs"]
    assert (path / "report.html").stat().st_size < 5_000_000
    assert matrix(run, "update_norm", "decoder")["rows"] == 200  # nothing had to be thinned
    assert run["notes"] == ["curves of 10,000 points are thinned; every peak and dip is kept"]
    loss = run["metrics"]["loss"]
    assert len(loss["steps"]) <= 2000
    assert loss["logged"] == 10_000
    grad = run["metrics"]["grad_norm"]
    assert max(grad["values"]) == pytest.approx(96 / 7, rel=1e-5)
    assert np.mean(grad["mean"]["values"]) == pytest.approx(48 / 7, rel=0.01)  # what peaks alone would not give


def test_more_samples_than_fit_are_thinned_and_told(tmp_path: Path) -> None:
    path = deep_run(tmp_path / "run", 500, 500, 500)
    (run,) = report(path)["runs"]
    assert (path / "report.html").stat().st_size < 5_000_000
    shown = matrix(run, "update_norm", "encoder")
    assert 300 < shown["rows"] < 500
    assert shown["sampled"] == 500
    assert (shown["steps"][0], shown["steps"][-1]) == (50, 25_000)
    assert run["notes"] == [f"depth signals: {shown['rows']} of 500 sampled steps are shown, evenly spread"]


def test_many_events_are_thinned_routine_ones_first(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    events = [{"step": s, "event": "alert" if s % 100 == 0 else "save"} for s in range(1, 5001)]
    write_lines(path / "events.jsonl", events)
    (run,) = report(path)["runs"]
    assert len(run["events"]) <= 1000
    assert sum(event["event"] == "alert" for event in run["events"]) == 50
    assert run["notes"] == [f"events: {len(run['events'])} of 5000 are shown, saves and evaluations thinned first"]


def test_what_cannot_be_written(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    for runs, out, words in (
        ([], tmp_path / "x.html", "no run given"),
        ([run], tmp_path, "is a folder"),
        ([run], tmp_path / "file" / "x.html", "cannot be written"),
    ):
        with pytest.raises(UserError, match=words) as raised:
            write_report(runs, out)
        assert "\n" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "run"]


# ---- in a browser

PROBE = """
const shown = document.documentElement.dataset;
setTimeout(() => {
  const canvas = document.querySelectorAll(".map canvas")[0], context = canvas.getContext("2d");
  const x = Math.round(canvas.width * 0.6), brightest = [];
  for (let y = 0; y < canvas.height; y++) {
    const [r, g, b] = context.getImageData(x, y, 1, 1).data;
    if (r > 245 && g > 220 && b < 60) brightest.push(y / canvas.height);
  }
  shown.brightest = JSON.stringify(brightest);
  shown.text = document.getElementById("page").textContent;
}, 300);
"""


def browse(page: Path, profile: Path, probe: str = "") -> str:
    """The page's document after its script has run, as headless Chromium prints it."""
    assert CHROMIUM is not None
    probed = page.with_name("probed.html")
    probed.write_text(page.read_text().replace("</body>", f"<script>{probe}</script></body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    options = ["--virtual-time-budget=3000", "--window-size=1366,900", "--dump-dom", probed.as_uri()]
    return subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_browser_draws_the_planted_layer_where_it_belongs(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    lines = [json.loads(line) for line in (path / "layers.jsonl").read_text().splitlines()]
    for line in lines:
        line["signals"]["norm_input_rms"]["encoder.self_attention"][4] = 90.0
    write_lines(path / "layers.jsonl", lines)
    report(path)
    document = browse(path / "report.html", tmp_path / "profile", PROBE)
    assert 'data-ready="true"' in document
    assert "could not be drawn" not in document.split("<body>")[1].split("<script")[0]
    rows = json.loads(re.search(r'data-brightest="([^"]*)"', document)[1])  # type: ignore[index]
    # layer 4 of 6, counted from below, in a map from y 6 to 206 of 240
    assert rows
    assert 240 * min(rows) == pytest.approx(6 + 200 * 1 / 6, abs=3)
    assert 240 * max(rows) == pytest.approx(6 + 200 * 2 / 6, abs=3)
    text = re.search(r'data-text="([^"]*)"', document)[1]  # type: ignore[index]
    assert "Validation loss5.25nats" in text
    assert "unigram entropy 5.72 (−0.47)" in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("case", ["config only", "one step", "all nan", "two runs"])
def test_browser_draws_poor_runs_too(tmp_path: Path, case: str) -> None:
    runs = [write_run(tmp_path / "run")]
    if case == "config only":
        for name in ("metrics.jsonl", "layers.jsonl", "events.jsonl", "summary.json"):
            (runs[0] / name).unlink()
    elif case == "one step":
        write_lines(runs[0] / "metrics.jsonl", [metric(1)])
        write_lines(runs[0] / "layers.jsonl", [{"step": 1, "signals": signals(1, 3, 0.0)}])
    elif case == "all nan":
        write_lines(runs[0] / "metrics.jsonl", [metric(s, loss=math.nan, lr=math.inf) for s in (1, 2, 3)])
        write_lines(runs[0] / "layers.jsonl", [{"step": s, "signals": signals(3, 3, math.nan)} for s in (1, 2)])
    else:
        runs.append(deep_run(tmp_path / "deep", 3, 20, 2))
    report(*runs)
    document = browse(runs[0] / "report.html", tmp_path / "profile")
    assert 'data-ready="true"' in document
    assert 'class="card failure"' not in document
