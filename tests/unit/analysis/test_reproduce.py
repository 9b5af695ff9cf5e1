"""tools/reproduce.py's study: which runs, what is read of them, what is written."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import pretrain
from pretrain.analysis.reproduce import Run, train_all
from pretrain.analysis.reproduce_deepnet import SETTINGS, Setting, Study, table
from pretrain.analysis.reproduce_deepnet_verdict import UNDECIDED
from pretrain.analysis.reproduce_page import write_study
from pretrain.analysis.svg_plot import Line, line_plot
from pretrain.config.load import to_yaml
from pretrain.errors import UserError

TOOL = Path(pretrain.__file__).parents[1] / "tools" / "reproduce.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("reproduce_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_logs(folder, steps, update, missing=()):
    """A run's logs: the update at step s is update * s; null at the steps that are missing."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("name: made_up\n")
    metrics, layers = [], []
    for step in range(1, steps + 1):
        value = None if step in missing else update * step
        metrics.append({"step": step, "loss": 8.0 - 0.01 * step})
        figures = {"model_update": value, "model_update_step": update, "model_update_bound": 3 * update * step}
        layers.append({"step": step, "signals": {name: {"model": [figure]} for name, figure in figures.items()}})
    metrics += [{"step": step, "validation_loss": 7.9, "source_use": 0.01 * step} for step in (6, 12, 18)]
    for name, entries in (("metrics", metrics), ("layers", layers)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


@pytest.fixture
def study(tmp_path):
    """Two depths of every setting but one, whose second depth is not there; one run is longer than asked for."""
    study = Study(tmp_path, (2, 4), 12)
    for index, setting in enumerate(SETTINGS):
        write_logs(study.run_of(setting, 2).folder, 20 if index == 0 else 12, 0.1, missing=(3,))
        if index < 3:
            write_logs(study.run_of(setting, 4).folder, 12, 0.1 * (index + 1))
    return study


def test_runs():
    """The deepest first, each in its own folder, as the schema takes them."""
    study = Study(Path("runs/x"), (2, 4), 30, ("optimizer.lr=0.5",))
    runs = study.runs()
    assert len({run.folder for run in runs}) == 8
    assert [run.experiment().model.encoder_layers for run in runs] == [4] * 4 + [2] * 4
    found = {run.folder.name: run.experiment() for run in runs}
    cold, warm = found["post_ln_no_warmup_4"], found["deepnorm_warmup_2"]
    assert (cold.model.block.kind, cold.schedule.warmup_steps, cold.train.stop_at_step) == ("post_ln", 0, 30)
    assert (warm.model.block.kind, warm.schedule.warmup_steps, warm.optimizer.lr) == ("deepnorm", 1000, 0.5)
    assert {(experiment.monitors.interval, experiment.evaluation.interval) for experiment in found.values()} == {
        (1, 30)
    }


def test_a_run_of_other_settings_is_refused_before_anything_is_trained(tmp_path):
    run = Study(tmp_path, (2,), 30).run_of(SETTINGS[0], 2)
    other = Run(run.folder, run.title, run.recipe, (*run.overrides, "optimizer.lr=0.5"))
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(to_yaml(run.experiment()))
    assert run.experiment()
    with pytest.raises(UserError, match=r"optimizer\.lr differs from the run in .*-o"):
        train_all([other], 1, print)


def test_what_is_finished_is_not_trained_again(tmp_path):
    run = Study(tmp_path, (2,), 30).run_of(SETTINGS[0], 2)
    run.folder.mkdir(parents=True)
    (run.folder / "summary.json").write_text('{"step": 30}')
    said = []
    assert train_all([run], 1, said.append) == []
    assert said == ["1 of 1 runs are finished already"]
    longer = Study(tmp_path, (2,), 31).run_of(SETTINGS[0], 2)
    assert not longer.finished(longer.experiment())


def test_curves(study):
    curves = study.curves()
    assert [list(by_depth) for by_depth in curves.values()] == [[2, 4], [2, 4], [2, 4], [2]]
    longer = curves[Setting("deepnorm", True)][2]
    assert longer.steps.tolist() == list(range(1, 13))
    assert math.isnan(longer.at(3))
    assert longer.at(12) == pytest.approx(1.2)
    assert math.isnan(longer.at(13))
    assert np.allclose(longer.step_update, 0.1)
    assert longer.bound[4] == pytest.approx(1.5)
    assert longer.source_use == 0.12, "of the steps asked for"


def test_table(study):
    head, rows = table(study.curves())
    assert head == ["design", "layers", *[f"after {n}" for n in (1, 2, 5, 10, 12)], "loss at the end", "source use"]
    assert rows[0] == ["DeepNorm, warm-up", "2+2", "0.1", "0.2", "0.5", "1", "1.2", "7.880", "0.12"]
    assert len(rows) == 7


def test_what_is_written(study):
    verdicts = write_study(study)
    page = (study.folder / "index.html").read_text()
    for verdict in verdicts:
        assert verdict.claim.replace("'", "&#x27;") in page
        assert verdict.claim in (study.folder / "table.md").read_text()
    assert "| Post-LN, warm-up | 4+4 | 0.2 |" in (study.folder / "table.md").read_text()
    assert not re.search(r"(?:src|href)=\"(?!data:)|url\(|@import|<script", page), "opens without a network"
    plots = [ElementTree.fromstring(plot) for plot in re.findall(r"<svg.*?</svg>", page)]
    assert len(plots) == 3 * 4 + 5, "three figures a setting, and one over depth a column"
    assert "nan" not in "".join(re.findall(r' d="[^"]*"', page))
    with (study.folder / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7 * 12
    assert rows[1] | {"layers": "2+2", "step": "2", "model_update": "0.2", "heuristic_bound": "0.6"} == rows[1]


def test_without_any_run(tmp_path):
    study = Study(tmp_path, (2,), 12)
    assert [verdict.result for verdict in write_study(study)] == [UNDECIDED, UNDECIDED]


def drawn(xs, ys, **axes):
    """The path of a plot's one curve."""
    svg = ElementTree.fromstring(line_plot("", "", [Line("", xs, ys, "")], **axes))
    (path,) = [node.get("d") for node in svg.iter("path") if node.get("class") == "line"]
    return path


def pixels(path):
    """The x of its points."""
    return [float(x) for x in re.findall(r"[ML]([\d.]+) ", path)]


@pytest.mark.parametrize(("xs", "log"), [([0, 5, 10], False), ([1, 10, 100], True)])
def test_plot_axes_are_linear_or_logarithmic(xs, log):
    first, second, third = pixels(drawn(xs, [1, 2, 3], log_x=log))
    assert second - first == pytest.approx(third - second, abs=0.1)
    assert third - first > 300


@pytest.mark.parametrize(
    ("ys", "log", "steps"), [([1.0, 2.0, math.nan, 1.0], False, "MLM"), ([0.0, 2.0, 1.0, 1.0], True, "MLL")]
)
def test_plot_leaves_a_gap_where_there_is_no_height(ys, log, steps):
    assert re.sub(r"[\d. ]", "", drawn([1, 2, 3, 4], ys, log_y=log)) == steps


WRONG = [[], ["nothing"], ["deepnet_update", "--depths", "0"], ["deepnet_update", "--steps", "x"]]


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_command_lines(tool, arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        tool.main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_wrong_keys_are_one_line(tool, tmp_path, capsys):
    assert tool.main(["deepnet_update", "-o", str(tmp_path), "optimizer.lrr=1"]) == 2
    assert "unknown key 'optimizer.lrr'" in capsys.readouterr().err
