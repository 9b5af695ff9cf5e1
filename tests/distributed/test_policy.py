"""Injected faults: each policy does what it says, and the run goes on as one that has never seen the bad data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from harness import Group, figures, lines, losses
from safetensors.torch import load_file
from targets_policy import train_with_faults

from pretrain.launch.again import restartable

STEPS = (
    "train.max_steps=20",
    "evaluation.interval=0",
    "monitors.interval=0",
    "checkpoint.interval=4",
    "checkpoint.keep_last=9",
    "schedule.warmup_steps=2",
)
WATCH = ("policy.window=8", "policy.sigmas=8", "policy.spike_steps=2", "policy.not_finite_steps=2")
ALL = (*WATCH, "policy.on_outlier=[skip]", "policy.on_spike=[rollback]", "policy.on_not_finite=[rollback]")
# Step 11 would see the samples 80 to 87; its second try makes it, and the ones after are a batch further on.
FAULTS = {"garbage": (80, 88), "rate": {14: 1000.0}, "nan": {18: 2}}
LEFT_OUT = [[80, 88], [104, 136], [168, 192]]
LAYOUTS = {
    "one": (1, []),
    "dp2": (2, []),
    "zero3_dp2": (2, ["parallel.zero_stage=3"]),
    "pp2": (2, ["parallel.pipeline_stages=2", "monitors.interval=2"]),
}


def run(recipe, folder, layout, *overrides, **faults):
    """Train in `folder`; (exit codes, what rank 0 printed)."""
    processes, changes = LAYOUTS[layout]
    argv = ["--recipe", str(recipe), f"run.dir={folder}", *STEPS, *changes, *overrides]
    group = Group(train_with_faults, processes, argv, faults)
    if faults.get("dies_after"):
        return group.join(), group.output()
    return group.results(), group.output()


def events(folder, *kinds):
    return [event for event in lines(folder / "events.jsonl") if event["event"] in kinds]


def training(folder, step):
    return json.loads((folder / "checkpoints" / f"step_{step:08d}" / "training.json").read_text())


def assert_same_state(folder, other, step):
    """Bit for bit: weights and moments of each rank; data position, Adam's count, progress."""
    files = sorted((folder / "checkpoints" / f"step_{step:08d}").glob("rank_*"))
    assert files
    for path in files:
        ours, theirs = load_file(path), load_file(other / path.relative_to(folder))
        for quantity in ("weight", "exp_avg", "exp_avg_sq"):
            assert torch.equal(ours[quantity], theirs[quantity]), (step, path.name, quantity)
    ours, theirs = training(folder, step), training(other, step)
    assert ours["data"]["samples_consumed"] == theirs["data"]["samples_consumed"]
    assert ours["optimizer_steps"] == theirs["optimizer_steps"] == step
    for key in ("step", "samples", "tokens", "loss"):
        assert ours["progress"][key] == theirs["progress"][key]


@pytest.fixture(scope="module")
def runs(small_recipe, tmp_path_factory):
    """Folders by layout, trained when first asked for: with all faults and policies, and with neither but those
    samples left out from the start."""
    folder, done = tmp_path_factory.mktemp("policy"), {}

    def get(layout) -> tuple[Path, Path]:
        if layout not in done:
            done[layout] = folder / layout, folder / f"{layout}_clean"
            assert set(run(small_recipe, folder / layout, layout, *ALL, **FAULTS)[0]) == {0}
            never = f"data.skip_ranges={json.dumps(LEFT_OUT)}"
            assert set(run(small_recipe, folder / f"{layout}_clean", layout, never)[0]) == {0}
        return done[layout]

    return get


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_fault_is_met(runs, layout):
    """Garbage is skipped; the long step makes two outliers, NaN leaves no gradient twice: both go back."""
    found = [(event["event"], event["step"]) for event in events(runs(layout)[0], "skip", "rollback")]
    assert found == [
        ("skip", 11),
        ("skip", 15),
        ("skip", 15),
        ("rollback", 15),
        ("skip", 18),
        ("skip", 18),
        ("rollback", 18),
    ]
    spike, broken = events(runs(layout)[0], "rollback")
    assert (spike["to_step"], broken["to_step"]) == (12, 16)
    assert [spike["sample_ranges"], broken["sample_ranges"]] == [LEFT_OUT[1:2], LEFT_OUT[2:]]
    assert "spike" in spike["reason"]
    assert len(spike["losses"]) == 2
    assert "not finite" in broken["reason"]
    assert len(broken["losses"]) == len(broken["grad_norms"]) == 2
    garbage = events(runs(layout)[0], "skip")[0]
    assert "outlier" in garbage["reason"]
    assert garbage["sample_ranges"] == LEFT_OUT[:1]
    assert max(garbage.get("loss_sigmas", 0.0), garbage.get("grad_norm_sigmas", 0.0)) > 8


def test_signals_go_on_as_well(runs):
    """Step 18 is sampled and given up; what signals remember afterwards is that of the checkpoint."""
    met, never = runs("pp2")
    assert [entry["step"] for entry in lines(met / "layers.jsonl")] == [1, *range(2, 21, 2)]
    assert lines(met / "layers.jsonl") == lines(never / "layers.jsonl")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_run_equals_one_that_never_saw_the_data(runs, layout):
    """Exactly: losses, norms, weights and moments, data state, counts."""
    met, never = runs(layout)
    assert losses(met) == losses(never)
    assert len(losses(met)) == 20
    for key in ("grad_norm", "lr", "samples", "tokens"):
        assert figures(met, key) == figures(never, key), key
    for step in (12, 16, 20):
        assert_same_state(met, never, step)
    assert training(met, 20)["data"]["skip_ranges"] == LEFT_OUT
    left = sorted(path.name for path in (met / "checkpoints").glob("*step_*") if not path.name.startswith("step_"))
    assert left == [], "nothing newer than step 16 had been saved"


def test_it_goes_on_after_a_kill_behind_the_rollback(runs, small_recipe, tmp_path):
    """kill -9 before a checkpoint knows of the rollback: the next session leaves the same samples out."""
    folder = tmp_path / "run"
    assert run(small_recipe, folder, "dp2", *ALL, **FAULTS, dies_after=1)[0] == [9, 9]
    assert [event["step"] for event in events(folder, "rollback")] == [15]
    assert set(run(small_recipe, folder, "dp2", *ALL, **(FAULTS | {"rate": {}}))[0]) == {0}
    assert [event["step"] for event in events(folder, "resume")] == [12]
    never = runs("dp2")[1]
    assert losses(folder) == losses(never)
    assert_same_state(folder, never, 20)


def test_rollbacks_end_and_the_last_good_checkpoint_stays(runs, small_recipe, tmp_path):
    """The long step comes again and again: the second rollback skips more, then the run stops and says why."""
    policy = (*WATCH, "policy.on_spike=[rollback]", "policy.on_not_finite=[rollback]", "policy.max_rollbacks=2")
    folder = tmp_path / "run"
    codes, output = run(small_recipe, folder, "pp2", *policy, "checkpoint.interval=2", rate={14: 1000.0}, always=True)
    assert codes == [78, 78]
    assert "ended at step 12 (unstable)" in output
    told = [line for line in output.splitlines() if line.startswith("step 1") and "spike: " in line]
    assert [line.split(",")[0].split(": ")[1] for line in told] == ["back to step 12", "back to step 12", "stopped"]
    assert [path.name for path in (folder / "aside").glob("step_*")] == [Path(events(folder, "stop")[0]["aside"]).name]
    assert not restartable(78)
    first, second = events(folder, "rollback")
    assert first["to_step"] == second["to_step"] == 12
    assert first["sample_ranges"][0][0] == second["sample_ranges"][0][0] == 96
    assert second["sample_ranges"][0][1] > first["sample_ranges"][0][1]
    (stop,) = events(folder, "stop")
    assert (stop["to_step"], "2 rollbacks in 1000 steps" in stop["reason"]) == (12, True)
    assert events(folder, "end")[-1]["exit_code"] == 78
    names = sorted(path.name for path in (folder / "checkpoints").glob("*step_*"))
    assert [name for name in names if name.startswith("step_")] == [f"step_{n:08d}" for n in range(2, 13, 2)]
    assert all(name.startswith("rolled_back_") for name in names if not name.startswith("step_"))
    assert (folder / "checkpoints" / "latest").read_text() == "step_00000012\n"
    assert len(losses(folder)) == 12, "the logs end there as well"
    assert json.loads((folder / "summary.json").read_text())["step"] == 12
    assert losses(folder)[:10] == losses(runs("pp2")[0])[:10]


def test_a_lower_rate_for_a_while(runs, small_recipe, tmp_path):
    """Steps 11 to 14 at half the rate, over the end of a session too."""
    policy = (*WATCH, "policy.on_outlier=[skip,scale_rate]", "policy.rate_factor=0.5", "policy.rate_steps=4")
    folder = tmp_path / "run"
    for last in (12, 20):
        run(small_recipe, folder, "one", *policy, f"train.stop_at_step={last}", garbage=FAULTS["garbage"])
    plain = enumerate(figures(runs("one")[1], "lr"), start=1)
    assert figures(folder, "lr") == [0.5 * lr if step in (11, 12, 13, 14) else lr for step, lr in plain]
    (event,) = events(folder, "rate")
    assert (event["step"], event["factor"], event["last_step"]) == (11, 0.5, 14)


def test_an_alarm_stops_a_run_that_has_nothing_to_go_back_to(small_recipe, tmp_path):
    alarm = ("policy.on_alarm=[stop]", "policy.alarm_signals=[update_ratio]", "verdicts.update_ratio=[0,1e-9]")
    codes, output = run(small_recipe, tmp_path / "run", "one", *alarm, "monitors.interval=1")
    assert codes == [78]
    assert "ended at step 1 (unstable)" in output
    (alert,) = events(tmp_path / "run", "alert")
    assert (alert["signal"], alert["level"]) == ("update_ratio", "alarm")
    (stop,) = events(tmp_path / "run", "stop")
    assert stop["to_step"] is None
    assert stop["reason"].startswith("alarm: update_ratio is ")
    assert stop["update_ratio"] == alert["value"]
    assert not list((tmp_path / "run" / "checkpoints").glob("step_*")), "a state in doubt is not saved"


def test_an_alarm_goes_back_to_the_last_calm_sample(small_recipe, tmp_path):
    """The long step 14 changes the weights by more than themselves: seen in its own sample, before any loss is.

    TensorBoard then shows what the logs have: the steps that count.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    alarm = ("policy.on_alarm=[rollback]", "policy.alarm_signals=[update_ratio]", "monitors.interval=2")
    shown = ("train.max_steps=16", "monitors.tensorboard=true")
    folder = tmp_path / "run"
    codes, _ = run(small_recipe, folder, "one", *alarm, *shown, rate={14: 1000.0})
    assert codes == [0]
    (event,) = events(folder, "rollback")
    assert (event["step"], event["to_step"], event["sample_ranges"]) == (14, 12, [[96, 112]])
    assert event["update_ratio"] > 1
    assert [entry["step"] for entry in lines(folder / "layers.jsonl")] == [1, *range(2, 17, 2)]
    assert len(losses(folder)) == 16
    scalars = EventAccumulator(str(folder / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in scalars] == [
        (step, pytest.approx(loss, rel=1e-6)) for step, loss in enumerate(losses(folder), start=1)
    ]
