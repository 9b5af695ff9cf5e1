"""tools/checkpoint.py, as it is called."""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest
import torch
from checkpoints_by_hand import HandEngine, save, saver
from documented_commands import ROOT

from pretrain.config.load import load_experiment, to_yaml
from pretrain.state.keep import Keep
from pretrain.training.run_folder import RunFolder

torch.set_num_threads(1)
LAYER = "layers.1.fc.weight"


def program():
    spec = importlib.util.spec_from_file_location("tools_checkpoint", ROOT / "tools" / "checkpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(capsys):
    """`call("list", run)`: (exit code, lines of standard output, of standard error)."""
    module = program()

    def call(*arguments):
        try:
            code = module.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
        output = capsys.readouterr()
        return code, output.out.splitlines(), output.err.splitlines()

    return call


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    run = tmp_path_factory.mktemp("made") / "run"
    saving = saver(run / "checkpoints", Keep(9))
    for step in (2, 4, 6, 8):
        save(saving, HandEngine(layers=2), step)
    (run / "config.yaml").write_text(
        to_yaml(load_experiment("demo", ["checkpoint.keep_last=2", "checkpoint.keep_every=4"]))
    )
    return run


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def test_list(run, call):
    (run / "checkpoints" / "step_00000006" / "index.json").unlink()
    (run / "checkpoints" / "step_00000002").rename(run / "checkpoints" / "damaged_step_00000002")
    (run / "checkpoints" / ".saving_00000010").mkdir()
    code, lines, errors = call("list", run)
    assert (code, errors) == (0, [])
    rows = {line.split()[0]: line for line in lines[1:-1]}
    assert list(rows) == [
        *("step_00000008", "step_00000006", "step_00000004"),
        *("damaged_step_00000002", ".saving_00000010"),
    ]
    assert rows["step_00000008"].endswith("KiB  1 process  newest, last 2, every 4")
    assert rows["step_00000006"].endswith("last 2                   damaged: index.json is missing")
    assert rows["step_00000004"].endswith("every 4")
    assert rows["damaged_step_00000002"].endswith("damaged, set aside")
    assert "incomplete" in rows[".saving_00000010"]
    assert lines[-1].endswith("in 5")


def test_list_of_nothing(tmp_path, call):
    (tmp_path / "checkpoints").mkdir()
    assert call("list", tmp_path) == (0, [f"{tmp_path}: no checkpoint yet"], [])


@pytest.mark.parametrize("command", [("list",), ("verify",), ("prune", "--keep-last", "1")])
def test_not_a_run(command, tmp_path, call):
    code, lines, errors = call(command[0], tmp_path / "nowhere", *command[1:])
    assert (code, lines) == (2, [])
    assert errors == [f"error: {tmp_path}/nowhere: not a run with checkpoints; expected RUN/checkpoints"]


def test_verify(run, call):
    code, lines, _ = call("verify", run)
    assert code == 0
    assert [line.endswith(": whole") for line in lines] == [True] * 4
    folder = run / "checkpoints" / "step_00000006"
    weights = bytearray((folder / "rank_00000.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "rank_00000.safetensors").write_bytes(weights)
    (folder / "tokenizer.model").unlink()
    problems = [
        f"{folder}: rank_00000.safetensors differs from its SHA-256 in the manifest",
        f"{folder}: tokenizer.model is missing",
    ]
    assert call("verify", folder) == (1, problems, [])
    code, lines, _ = call("verify", run)
    assert (code, len(lines)) == (1, 5)
    assert call("verify", folder.parent / "step_00000008")[0] == 0
    (folder / "manifest.json").write_text("{")
    code, lines, _ = call("verify", folder)
    assert (code, len(lines)) == (1, 1)
    assert "manifest.json: damaged" in lines[0]


def test_inspect(run, call):
    code, lines, _ = call("inspect", run)
    assert code == 0
    assert lines[0].endswith("step_00000008: step 8, 4 parameters, 144 weights")
    assert lines[1:] == [
        *("layers.0.fc.weight  [8, 8]", "layers.0.fc.bias    [8]"),
        *("layers.1.fc.weight  [8, 8]", "layers.1.fc.bias    [8]"),
    ]
    engine = HandEngine(layers=2)
    engine.set(8)
    shard = next(shard for shard in engine.owned_shards() if shard.name == LAYER)
    code, lines, _ = call("inspect", run, "--parameter", LAYER)
    name, norm, mean, largest, *rest = lines[2].split()
    assert (code, name, len(lines)) == (0, LAYER, 3)
    assert float(norm) == pytest.approx(float(shard.weight.double().norm()), rel=1e-3), "four digits are printed"
    assert float(mean) == pytest.approx(float(shard.weight.mean()), rel=1e-2)
    assert float(largest) == pytest.approx(float(shard.weight.max()), rel=1e-3)
    assert rest[0] == "exp_avg"
    assert float(rest[1]) == pytest.approx(float(shard.exp_avg.double().norm()), rel=1e-3)
    assert float(rest[3]) == pytest.approx(float(shard.exp_avg_sq.double().norm()), rel=1e-3)
    assert rest[4:] == ["[8,", "8]"]
    assert len(call("inspect", run, "--layer", "layers.1")[1]) == 4
    assert len(call("inspect", run, "--layer", "layers.1.fc.bias")[1]) == 3
    assert len(call("inspect", run, "--all")[1]) == 6


@pytest.mark.parametrize(
    ("option", "asked", "near"),
    [
        ("--layer", "layers.7", "layers.1"),
        ("--layer", "layer", "layers"),
        ("--parameter", "layers.1.fc.bia", "layers.1.fc.bias"),
    ],
)
def test_inspect_what_is_not_there(option, asked, near, run, call):
    code, lines, errors = call("inspect", run, option, asked)
    assert (code, lines, len(errors)) == (2, [], 1)
    assert f"{option.strip('-')} {asked!r}" in errors[0]
    assert near in errors[0]


def test_inspect_reads_only_what_is_asked_for(run, call, monkeypatch):
    read, preadv = [], os.preadv

    def count(handle, buffers, at):
        read.append(sum(buffer.nbytes for buffer in buffers))
        return preadv(handle, buffers, at)

    monkeypatch.setattr(os, "preadv", count)
    call("inspect", run)
    assert read == [], "names and shapes are in the index"
    call("inspect", run, "--parameter", LAYER)
    assert sum(read) == 3 * 64 * 4, "one parameter and its two moments"


def test_prune(run, call):
    checkpoints = run / "checkpoints"
    before = sorted(path.name for path in checkpoints.iterdir())
    code, lines, _ = call("prune", run, "--keep-last", 1, "--keep-every", 4, "--dry-run")
    assert (code, lines) == (0, [f"would remove {checkpoints}/step_0000000{step}" for step in (6, 2)])
    assert sorted(path.name for path in checkpoints.iterdir()) == before
    code, lines, _ = call("prune", run, "--keep-last", 1, "--keep-every", 4)
    assert (code, lines) == (0, [f"removed {checkpoints}/step_0000000{step}" for step in (6, 2)])
    assert sorted(path.name for path in checkpoints.iterdir()) == ["latest", "step_00000004", "step_00000008"]
    assert call("prune", run, "--keep-last", 2) == (0, ["nothing to remove"], [])


def test_prune_beside_a_session_is_refused(run, call):
    session = RunFolder(run, writes=True)
    session.acquire()
    code, lines, errors = call("prune", run, "--keep-last", 1)
    assert (code, lines) == (2, [])
    assert errors[0].startswith(f"error: run.dir = {run} is in use by process {os.getpid()} ")
    assert len(list((run / "checkpoints").glob("step_*"))) == 4
    assert call("prune", run, "--keep-last", 1, "--dry-run")[0] == 0
    session.release()
    assert call("prune", run, "--keep-last", 1)[0] == 0
    RunFolder(run, writes=True).acquire(grace=0.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("prune", "run"), "--keep-last"),
        (("prune", "run", "--keep-last", "0"), "0 is below 1"),
        (("nothing",), "invalid choice"),
        (("inspect", "run", "--layer", "a", "--all"), "not allowed with"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, said, call):
    code, _, errors = call(*arguments)
    assert (code, len(errors)) == (2, 1)
    assert said in errors[0]


def test_help_and_version(call):
    code, lines, _ = call("--help")
    assert code == 0
    assert any("tools/checkpoint.py prune runs/demo --keep-last 2" in line for line in lines)
    assert call("--version")[1][0].startswith("kilolayer ")
