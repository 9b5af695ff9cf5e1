"""The report's page: what is embedded, how large it is, and that a browser draws it."""

from __future__ import annotations

import copy
import html
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.analysis.compact import script_json, unpack_matrix
from pretrain.analysis.recorded_run import LayerSignal, RecordedRun, Series
from pretrain.analysis.report import render, write_report
from pretrain.analysis.report_data import report_data
from pretrain.analysis.report_depth import packed_depth
from pretrain.errors import UserError

from .synthetic_runs import CONFIG, embedded, every_figure, metric, signals, write_lines, write_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def report(*runs: Path) -> dict[str, Any]:
    out = runs[0] / "report.html"
    write_report(list(runs), out)
    return embedded(out)


def matrix(run: dict[str, Any], signal: str, group: str) -> dict[str, Any]:
    return next(m for m in run["layers"] if (m["signal"], m["group"], m["heads"]) == (signal, group, None))


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
        "source_use": 1.25,
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
    data = report(write_run(tmp_path / "run"))
    (run,) = data["runs"]
    ffn = matrix(run, "norm_input_rms", "decoder.ffn")
    assert data["steps"] == [[1, 5, 10, 15, 20]]  # once for all signals that were sampled together
    assert ffn["at"] == 0
    expected = [[(1 + s / 100) * (1 + i / 10) for i in range(8)] for s in (1, 5, 10, 15, 20)]
    np.testing.assert_allclose(unpack_matrix(ffn), expected, rtol=2.01e-3)


def test_heads_stand_beside_the_worst_of_them(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    rows = [[1.0, 2.0, 8.0], [3.0, 2.0, 4.0]]
    write_lines(path / "layers.jsonl", [{"step": 1, "signals": {"attention_logit_max": {"encoder": rows}}}])
    data = report(path)
    (run,) = data["runs"]
    worst, heads = run["layers"]
    assert (worst["heads"], heads["heads"]) == (None, 3)
    np.testing.assert_allclose(unpack_matrix(worst), [[8.0, 4.0]], rtol=2.01e-3)
    np.testing.assert_allclose(unpack_matrix(heads), [np.ravel(rows)], rtol=2.01e-3)
    about = data["signals"]["attention_logit_max"]
    assert (about["section"], about["worst"]) == ("attention", "high")
    assert about["text"].endswith(".")


def test_every_figure_is_explained(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    shapes = every_figure(2, 2, 2)
    sample: dict[str, dict[str, Any]] = {}
    for (name, group), shape in shapes.items():
        sample.setdefault(name, {})[group] = np.ones(shape).tolist()
    write_lines(path / "layers.jsonl", [{"step": 1, "signals": sample}])
    data = report(path)
    assert set(data["signals"]) == {name for name, _ in shapes}
    assert all(about["title"] and about["unit"] and about["text"] for about in data["signals"].values())
    assert {about["section"] for about in data["signals"].values()} == set(data["sections"]) - {"other"}


def test_verdicts_the_worst_first(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    entries = [
        {
            "signal": name,
            "figure": name,
            "group": "encoder",
            "layer": 3,
            "level": level,
            "sentence": "why",
            "value": math.nan,
        }
        for name, level in (("a", "ok"), ("b", "alarm"), ("c", "watch"), ("d", "unheard of"))
    ]
    (path / "verdicts.json").write_text(json.dumps({"step": 20, "verdicts": [*entries, "what"]}))
    (run,) = report(path)["runs"]
    assert [(verdict["signal"], verdict["level"]) for verdict in run["verdicts"]] == [
        ("b", "alarm"),
        ("c", "watch"),
        ("a", "ok"),
    ]
    assert run["verdicts"][0] == {
        "signal": "b",
        "figure": "b",
        "group": "encoder",
        "layer": 3,
        "step": 20,
        "level": "alarm",
        "sentence": "why",
    }


def test_a_live_run_is_told_from_its_logs(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    (path / "summary.json").unlink()
    write_lines(path / "events.jsonl", [{"time": "2026-03-01T10:00:00Z", "step": 0, "event": "start"}])
    (run,) = report(path)["runs"]
    assert run["status"] == "step 20 of 20 · no end logged: still running, or killed"
    assert run["last_step"] == 20
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


def whole_run(layers: int, samples: int, points: int, events: int) -> RecordedRun:
    """A run that logs every figure, of noise that no compression can do much about."""
    generator = np.random.default_rng(0)
    steps = np.arange(1, samples + 1) * 50
    found = []
    for (name, group), shape in every_figure(layers, layers, 4).items():
        values = np.exp(generator.normal(size=(samples, *shape)))
        worst = values.max(-1) if values.ndim == 3 else values
        found.append(LayerSignal(name, group, steps, worst, values if values.ndim == 3 else None))
    metrics = {f"figure_{i}": Series(np.arange(1, points + 1), generator.normal(size=points)) for i in range(15)}
    told = [
        {"time": "2026-03-01", "step": i, "event": "alert", "reason": "x" * 300, "more": "y" * 300}
        for i in range(events)
    ]
    return RecordedRun(Path("runs/whole"), "whole", CONFIG, metrics, found, told, {})


def test_every_figure_of_a_thousand_layers_stays_below_five_megabytes(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(render([whole_run(500, 60, 20_000, 3000)]))
    assert 3_500_000 < page.stat().st_size < 5_000_000  # as much as there is room for
    data = embedded(page)
    (run,) = data["runs"]
    shown = matrix(run, "update_norm", "encoder.ffn")
    assert 20 <= shown["rows"] < 60
    (heads,) = [m for m in run["layers"] if (m["signal"], m["group"]) == ("scalar_beta", "encoder.self_attention")][1:]
    assert 5 <= heads["rows"] < shown["rows"]
    steps = data["steps"][shown["at"]]
    assert (steps[0], steps[-1]) == (50, 3000)
    assert run["notes"] == [
        "curves of 20,000 points are thinned; every peak and dip is kept",
        f"events: {len(run['events'])} of 3,000 are shown, saves and evaluations thinned first",
        f"depth signals: {shown['rows']} of 60 sampled steps are shown, evenly spread and before alerts",
        f"single heads: {heads['rows']} of 60 sampled steps are shown; the worst head in all",
    ]


def test_several_runs_share_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.analysis.report_data.MAX_DATA", 3_000_000)
    data = report_data([whole_run(20, 60, 5000, 2000)] * 5)
    assert 2_500_000 < len(script_json(data)) < 3_010_000
    assert all(2 < matrix(run, "update_norm", "encoder")["rows"] <= 60 for run in data["runs"])
    assert sum(len(run["events"]) for run in data["runs"]) < 1000


def test_samples_before_something_went_wrong_are_kept() -> None:
    run = whole_run(10, 400, 10, 0)
    events = [{"step": 777, "event": "save"}, {"step": 10_049, "event": "rollback"}, {"step": 13, "event": "alert"}]
    run.events.extend(events)
    notes: list[str] = []
    (packed,) = packed_depth([run], room=0, notes=[notes])
    (shown,) = {tuple(matrix["at"]) for matrix in packed if matrix["heads"] is None}
    assert 20 < len(shown) < 100
    assert {50, 10_000, 20_000} <= set(shown)  # what was sampled last before step 10,049
    assert np.diff(shown).max() <= 1000
    assert notes[0] == f"depth signals: {len(shown)} of 400 sampled steps are shown, evenly spread and before alerts"


def test_many_events_are_thinned_routine_ones_first(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    events = [{"step": s, "event": "alert" if s % 100 == 0 else "save"} for s in range(1, 5001)]
    write_lines(path / "events.jsonl", events)
    (run,) = report(path)["runs"]
    assert len(run["events"]) <= 1000
    assert sum(event["event"] == "alert" for event in run["events"]) == 50
    assert run["notes"] == [f"events: {len(run['events']):,} of 5,000 are shown, saves and evaluations thinned first"]


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

# without a window there may never be a frame to draw
NO_FRAMES = "<script>window.requestAnimationFrame = (draw) => setTimeout(draw, 0);</script>"
WHEN_READY = """<script>
const ready = setInterval(async () => {
  if (!document.documentElement.dataset.ready) return;
  clearInterval(ready);
  await new Promise((go) => setTimeout(go, 100));
  %s
}, 20);
</script>"""

PROBE = """
  const shown = document.documentElement.dataset;
  const canvas = document.querySelector("#signal-norm_input_rms .map canvas"), context = canvas.getContext("2d");
  const x = Math.round(canvas.width * 0.6), brightest = [];
  for (let y = 0; y < canvas.height; y++) {
    const [r, g, b] = context.getImageData(x, y, 1, 1).data;
    if (r > 245 && g > 220 && b < 60) brightest.push(y / canvas.height);
  }
  shown.brightest = JSON.stringify(brightest);
  const ends = [...document.querySelectorAll("#signal-norm_input_rms .scale span")].slice(0, 2);
  shown.scale = JSON.stringify(ends.map((end) => end.textContent));
  shown.text = document.getElementById("page").textContent;
"""


def browse(page: Path, profile: Path, probe: str = "") -> str:
    """The page's document after its script has run, as headless Chromium prints it."""
    assert CHROMIUM is not None
    probed = page.with_name("probed.html")
    text = page.read_text().replace("<body>", f"<body>{NO_FRAMES}").replace("</body>", WHEN_READY % probe + "</body>")
    probed.write_text(text)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    options = ["--virtual-time-budget=10000", "--window-size=1366,900", "--dump-dom", probed.as_uri()]
    return subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_browser_draws_the_planted_layer_where_it_belongs(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    lines = [json.loads(line) for line in (path / "layers.jsonl").read_text().splitlines()]
    for line, factor in zip(lines, (1.0, 0.5, 1.0, 0.5, 1.0), strict=True):  # up and down: codes are differences
        groups = line["signals"]["norm_input_rms"]
        groups |= {group: [factor * value for value in values] for group, values in groups.items()}
        groups["encoder.self_attention"][4] = 90.0
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
    low, high = json.loads(html.unescape(re.search(r'data-scale="([^"]*)"', document)[1]))  # type: ignore[index]
    assert (float(low), float(high)) == pytest.approx((0.5 * 1.05, 90.0), rel=5e-3)  # step 5, layer 0; the planted one
    text = re.search(r'data-text="([^"]*)"', document)[1]  # type: ignore[index]
    assert "Validation loss5.25nats" in text
    assert "unigram entropy 5.72 (−0.47)" in text


LEAD = """
  document.querySelector(".verdict button").click();
  await new Promise((go) => setTimeout(go, 100));
  const canvas = document.querySelector(".canvas-host canvas"), ratio = canvas.width / canvas.clientWidth;
  const at = (step) => (58 + (step / 20) * (canvas.clientWidth - 70)) * ratio;
  const tint = (step) => canvas.getContext("2d").getImageData(at(step), 30 * ratio, 1, 1).data[3];
  const panel = document.getElementById("signal-attention_logit_max");
  document.documentElement.dataset.led = JSON.stringify({
    sections: [...document.querySelectorAll("nav a")].map((link) => link.textContent),
    shown: [...document.querySelectorAll(".panel:not([hidden])")].map((panel) => panel.id.slice(7)),
    pressed: panel.querySelector(".parts [aria-pressed=true]").textContent,
    maps: [...panel.querySelectorAll(".map .name")].map((name) => name.textContent),
    plots: [...panel.querySelectorAll(".plot-head h3")].map((head) => head.textContent),
    badges: [...document.querySelectorAll(".badge")].map((badge) => badge.textContent),
    tints: [9, 11.3, 13, 15].map(tint),
  });
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_browser_leads_from_a_verdict_to_its_heads(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    sample: dict[str, dict[str, Any]] = {}
    for (name, group), shape in every_figure(4, 5, 3).items():
        sample.setdefault(name, {})[group] = np.full(shape, 0.5).tolist()
    write_lines(path / "layers.jsonl", [{"step": step, "signals": sample} for step in (1, 10, 20)])
    write_lines(
        path / "events.jsonl", [{"step": 0, "event": "start"}, {"step": 14, "event": "rollback", "to_step": 10}]
    )
    found = {"figure": "attention_logit_max", "group": "decoder.cross_attention", "layer": 3, "sentence": "too large"}
    verdicts = [
        {**found, "signal": "x", "level": "alarm"},
        {**found, "figure": "adam_rms", "signal": "y", "level": "ok"},
    ]
    (path / "verdicts.json").write_text(json.dumps({"step": 10, "verdicts": verdicts}))
    report(path)
    document = browse(path / "report.html", tmp_path / "profile", LEAD)
    assert 'class="card failure"' not in document
    led = json.loads(html.unescape(re.search(r'data-led="([^"]*)"', document)[1]))  # type: ignore[index]
    assert led["sections"] == [
        *("Loss and rate", "Model update", "Gradients and updates", "Norm inputs", "Attention", "Smoothing", "Scalars"),
        *("Speed", "Events", "Configuration"),
    ]
    assert led["shown"] == ["gradient_norm", "norm_input_rms", "attention_logit_max", "token_cosine", "scalar_alpha"]
    assert (led["pressed"], led["maps"]) == ("cross attention", ["decoder · cross attention"])
    assert led["plots"] == ["Over depth at step 10", "Over time of layer 3", "Heads of layer 3 at step 10"]
    assert led["badges"] == ["alarm", "ok"]
    before, within, also_within, after = led["tints"]
    assert (before, after) == (0, 0)  # the steps that were rolled back are shaded
    assert within == also_within > 0


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
