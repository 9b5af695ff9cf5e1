"""What a run was is in its checkpoints: which keys a next session may not change."""

from __future__ import annotations

import shutil
import time

import pytest
import torch
from checkpoints_by_hand import TRAINING, HandEngine

from pretrain.build import Request, folder_state, session_problem
from pretrain.checkpoint.restore import changed_keys
from pretrain.checkpoint.save import Saver
from pretrain.config.load import load_experiment, to_yaml
from pretrain.errors import ConfigError
from pretrain.state.keep import Keep
from pretrain.training.run_folder import RunFolder

torch.set_num_threads(1)


def saved(run, step, texts):
    saving = Saver(run / "checkpoints", Keep(9), {"processes": 1}, texts, lambda saved: None)
    saving.begin(step, HandEngine(), TRAINING, time.perf_counter())
    saving.wait()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of the recipe `demo` with two checkpoints."""
    run = tmp_path_factory.mktemp("made") / "run"
    config = to_yaml(load_experiment("demo", [f"run.dir={run}"]))
    for step in (2, 4):
        saved(run, step, {"config.yaml": config.encode()})
    (run / "config.yaml").write_text(config)
    return run


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def experiment(run, *overrides):
    return load_experiment("demo", [f"run.dir={run}", *overrides])


@pytest.mark.parametrize("override", ["optimizer.lr=0.5", "model.dropout=0.25", "batch.global_batch_size=64"])
@pytest.mark.parametrize("folder", ["as it was", "config gone", "only checkpoints copied", "another config"])
def test_a_changed_key_is_refused_by_name(override, folder, run, tmp_path):
    changed = experiment(run, override)
    match folder:
        case "config gone":
            (run / "config.yaml").unlink()
        case "only checkpoints copied":
            run = run.rename(tmp_path / "moved") / "checkpoints"
            run = shutil.copytree(run, tmp_path / "run" / "checkpoints").parent
        case "another config":
            (run / "config.yaml").write_text(to_yaml(changed))
    key = override.partition("=")[0]
    assert changed_keys(run, changed) == [key]
    assert session_problem(changed, Request()).startswith(f"{key} differs from the run in {run}")
    assert changed_keys(run, experiment(run, "train.max_steps=7", "parallel.zero_stage=2")) == []


@pytest.mark.parametrize("damage", ["flipped", "bomb", "gone", "renamed folder"])
def test_a_damaged_one_is_passed_over(damage, run):
    """Its checkpoint will be set aside; the next older one knows as well."""
    (run / "config.yaml").unlink()
    config = run / "checkpoints" / "step_00000004" / "config.yaml"
    match damage:
        case "flipped":
            config.write_bytes(config.read_bytes().replace(b"lr: ", b"lr: 1"))
        case "bomb":
            config.write_text("a: &a [*a]")
        case "gone":
            config.unlink()
        case "renamed folder":
            config.parent.rename(config.parent.with_name("step_00000009"))
    assert changed_keys(run, experiment(run)) == []
    assert changed_keys(run, experiment(run, "optimizer.lr=0.5")) == ["optimizer.lr"]


def test_checkpoints_that_hold_none(tmp_path):
    """Weights that were converted without a recipe: the folder's config, if there is one."""
    run = tmp_path / "run"
    saved(run, 3, {})
    assert changed_keys(run, experiment(run, "optimizer.lr=0.5")) == []
    (run / "config.yaml").write_text(to_yaml(experiment(run)))
    assert changed_keys(run, experiment(run, "optimizer.lr=0.5")) == ["optimizer.lr"]


def test_a_config_that_no_experiment_has_is_one_line(tmp_path):
    run = tmp_path / "run"
    saved(run, 3, {"config.yaml": b"nonsense: 1\n"})
    with pytest.raises(ConfigError, match="nonsense") as error:
        session_problem(experiment(run), Request())
    assert len(str(error.value).splitlines()) == 1


def test_a_folder_of_another_step_is_not_the_end_of_the_run(run):
    """Summed up at step 4; a copy of step 2 under a larger name does not make it unfinished."""
    (run / "summary.json").write_text('{"step": 4}')
    shutil.copytree(run / "checkpoints" / "step_00000002", run / "checkpoints" / "step_00000099")
    assert folder_state(experiment(run, "train.max_steps=4", "schedule.warmup_steps=1"), RunFolder(run, True)) == "done"
    assert folder_state(experiment(run, "train.max_steps=90"), RunFolder(run, True)) == "resumes"
