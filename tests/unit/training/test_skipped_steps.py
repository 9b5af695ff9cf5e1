"""A batch without a finite gradient is thrown away: nothing advances, and the run goes on as if it had never been."""

from __future__ import annotations

import json

import pytest
from harness import Group, figures, lines, losses, train
from targets_trainer import train_poisoned

STEPS = ("train.max_steps=4", "evaluation.interval=0", "checkpoint.interval=0", "schedule.warmup_steps=2")
POISON = {3: 2}  # the first two tries of step 3: samples 16..31 of 8 a step
LAYOUTS = {
    "one": (1, []),
    "pp2": (2, ["parallel.pipeline_stages=2"]),
    "bf16_dp2": (2, ["train.precision=bf16"]),
}


@pytest.fixture(scope="module")
def runs(small_recipe, tmp_path_factory):
    """Runs by name, each trained once when first asked for: (folder, what each rank saw)."""
    folder, done = tmp_path_factory.mktemp("skips"), {}

    def get(name):
        if name not in done:
            processes, changes = LAYOUTS[name]
            argv = ["--recipe", str(small_recipe), f"run.dir={folder / name}", *STEPS, *changes, "monitors.interval=1"]
            group = Group(train_poisoned, processes, argv, POISON, str(folder / f"{name}.seen"))
            assert group.results() == [0] * processes, group.output()
            seen = [json.loads((folder / f"{name}.{rank}").read_text()) for rank in range(processes)]
            done[name] = folder / name, seen
        return done[name]

    return get


@pytest.fixture(scope="module")
def never_seen(small_recipe, tmp_path_factory):
    """The run whose data leaves out the same samples from the start."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    argv = ["--recipe", str(small_recipe), f"run.dir={folder}", *STEPS, "data.skip_ranges=[[16,32]]"]
    train([*argv, "monitors.interval=1"])
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_advances(runs, layout):
    """Weights, moments, what the forward pass uses, and Adam's count, on every rank; the rate is that of the step."""
    folder, seen = runs(layout)
    rates = {entry["step"]: entry["lr"] for entry in lines(folder / "metrics.jsonl") if "lr" in entry}
    for rank in seen:
        assert [(step, skipped, same) for step, _, _, skipped, same in rank] == [
            (1, False, False),
            (2, False, False),
            (3, True, True),
            (3, True, True),
            (3, False, False),
            (4, False, False),
        ]
        assert [lr for _, lr, *_ in rank] == [rates[1], rates[2], rates[3], rates[3], rates[3], rates[4]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_recorded(runs, layout):
    folder, _ = runs(layout)
    skips = [event for event in lines(folder / "events.jsonl") if event["event"] == "skip"]
    assert [(event["step"], event["sample_ranges"]) for event in skips] == [(3, [[16, 24]]), (3, [[24, 32]])]
    assert all("not finite" in event["reason"] for event in skips)
    assert json.loads((folder / "summary.json").read_text())["skipped_steps"] == 2
    assert figures(folder, "skipped_steps") == figures(folder, "nonfinite_count") == [0, 0, 2, 2]
    (training,) = folder.glob("checkpoints/step_00000004/training.json")
    state = json.loads(training.read_text())
    assert state["data"]["skip_ranges"] == [[16, 32]]
    assert state["data"]["samples_consumed"] == 48
    assert state["optimizer_steps"] == 4
    assert {key: state["progress"][key] for key in ("step", "samples", "skipped")} == {
        "step": 4,
        "samples": 32,
        "skipped": 2,
    }


@pytest.mark.parametrize("layout", ["one", "pp2"])
def test_the_run_goes_on_as_without_those_samples(runs, never_seen, layout):
    folder, _ = runs(layout)
    rel = 0 if layout == "one" else 1e-5
    assert losses(folder) == pytest.approx(losses(never_seen), rel=rel, abs=0)
    for key in ("grad_norm", "lr", "validation_loss", "samples", "tokens", "target_tokens"):
        assert figures(folder, key) == pytest.approx(figures(never_seen, key), rel=rel, abs=0), key


@pytest.mark.parametrize("signal", ["update_norm", "norm_input_rms"])
def test_depth_signals_do_not_count_what_was_thrown_away(runs, never_seen, signal):
    """Step 3 was sampled: its rows are those of the batch that was kept."""
    found, expected = (
        [entry["signals"][signal] for entry in lines(folder / "layers.jsonl")]
        for folder in (runs("one")[0], never_seen)
    )
    assert len(found) == 4
    assert found == expected


def test_ten_in_a_row_end_the_run(command, tmp_path):
    argv = command("run", *STEPS, "train.max_steps=2")
    group = Group(train_poisoned, 1, argv, {2: 10}, str(tmp_path / "seen"))
    assert group.results() == [1]
    skips = [event["sample_ranges"] for event in lines(tmp_path / "run" / "events.jsonl") if event["event"] == "skip"]
    assert skips == [[[8 * n, 8 * n + 8]] for n in range(1, 11)]
    assert len(losses(tmp_path / "run")) == 1
    errors = [line for line in group.output().splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert "step 2" in errors[0]
    assert "optimizer.lr" in errors[0]
    assert "Traceback" not in group.output()


def test_a_run_killed_before_its_first_checkpoint_starts_its_logs_anew(command, tmp_path):
    """kill -9 at step 3 with no checkpoint: the same command trains from step 1, and each step stands there once."""
    argv = command("run", *STEPS, "train.max_steps=2", "monitors.interval=1")
    (tmp_path / "run").mkdir()
    for name in ("metrics.jsonl", "layers.jsonl"):
        stale = [json.dumps({"step": step, "loss": 9.0, "samples": 8 * step, "signals": {}}) for step in (1, 2, 3)]
        (tmp_path / "run" / name).write_text("\n".join(stale) + '\n{"step": 4, "lo')
    train(argv)
    assert len(losses(tmp_path / "run")) == 2
    assert [entry["step"] for entry in lines(tmp_path / "run" / "layers.jsonl")] == [1, 2]
