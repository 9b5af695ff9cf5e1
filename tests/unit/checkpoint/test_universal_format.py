"""The universal format without DeepSpeed: round trips, names, what is refused and what a failure leaves."""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
from pathlib import Path

import pytest
import torch

from pretrain.checkpoint import universal_import
from pretrain.checkpoint.universal import to_deepspeed
from pretrain.checkpoint.universal_folder import UniversalFolder
from pretrain.checkpoint.universal_import import from_deepspeed
from pretrain.checkpoint.universal_names import INDEXED, STAGES, canonical_names, deepspeed_names, spec_of
from pretrain.config.load import load_experiment, to_yaml
from pretrain.data.prepare import prepare
from pretrain.errors import CheckpointError, SaveFailed, UserError
from pretrain.models.layer_list import LayerList
from pretrain.state.index import MOMENTS, WEIGHT, Box, Index, Piece
from pretrain.state.reader import Checkpoint
from pretrain.state.writer import commit, rank_file, write_common_files, write_rank_file

QUANTITIES = (WEIGHT, *MOMENTS)
CHANGES = ["model.encoder_layers=2", "model.decoder_layers=2", "model.hidden_size=16", "model.ffn_size=24"]
TABLE = "token_embedding.weight"


@pytest.fixture(scope="module")
def experiment(small_recipe):
    return load_experiment(str(small_recipe), CHANGES)


@pytest.fixture(scope="module")
def spec(experiment):
    data = prepare(experiment, quiet=True)
    return spec_of(experiment, data.tokenizer.vocab_size, data.objective)


@pytest.fixture(scope="module")
def ours(experiment, spec, tmp_path_factory):
    """A checkpoint of step 7 by two ranks that cut the flat state in its middle; every number is random."""
    data = prepare(experiment, quiet=True)
    folder = tmp_path_factory.mktemp("ours")
    draft = folder / "draft"
    draft.mkdir()
    generator = torch.Generator().manual_seed(1)
    shapes = {name: tuple(p.shape) for name, p in LayerList(spec).named_parameters()}
    total = sum(torch.Size(shape).numel() for shape in shapes.values())
    flat = {quantity: torch.randn(total, generator=generator) for quantity in QUANTITIES}
    cut, at, pieces = total // 2, 0, ([], [])
    for name, shape in shapes.items():
        stop = at + torch.Size(shape).numel()
        for rank, (low, high) in enumerate(((0, cut), (cut, total))):
            a, b = max(at, low), min(stop, high)
            if a < b:
                pieces[rank].append(Piece(name, shape, Box.whole(shape), a - at, b - at, a - low, rank_file(rank)))
        at = stop
    records = {
        rank_file(0): write_rank_file(draft, 0, pieces[0], {q: flat[q][:cut] for q in QUANTITIES}),
        rank_file(1): write_rank_file(draft, 1, pieces[1], {q: flat[q][cut:] for q in QUANTITIES}),
    }
    training = {
        "progress": {"step": 7, "samples": 56, "tokens": 56 * 60, "seconds": 1.5, "loss": 2.5, "skipped": 1},
        "data": {"samples_consumed": 64, "skip_ranges": [[8, 16]], "fingerprint": data.fingerprint},
        "optimizer_steps": 7,
        "loss_scaler": {},
        "callbacks": {},
    }
    texts = {"config.yaml": to_yaml(experiment).encode(), "tokenizer.model": Path(data.tokenizer.path).read_bytes()}
    write_common_files(draft, Index([*pieces[0], *pieces[1]]), training, texts)
    commit(draft, folder / "step_00000007", 7, {}, records)
    return folder / "step_00000007"


@pytest.fixture(scope="module")
def exported(ours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "universal"
    to_deepspeed(ours, folder)
    return folder


@pytest.fixture
def copy(exported, tmp_path):
    """(its root, zero/) of a copy that a test may spoil."""
    shutil.copytree(exported, tmp_path / "copy")
    return tmp_path / "copy", tmp_path / "copy" / "step_00000007" / "zero"


def same(first: Path, second: Path, quantities=QUANTITIES) -> None:
    a, b = Checkpoint(first), Checkpoint(second)
    assert set(a.index.names()) == set(b.index.names())
    for name in a.index.names():
        for quantity in quantities:
            assert torch.equal(a.read(name, quantity), b.read(name, quantity)), (name, quantity)


@pytest.mark.parametrize("options", [{}, {"prefix": ""}, {"prefix": "net.body."}, {"naming": STAGES}])
def test_there_and_back_is_the_same_bit_for_bit(options, ours, tmp_path):
    report = to_deepspeed(ours, tmp_path / "universal", **options)
    assert report.files == 4 * report.parameters + 2 + 1 + 1 + 3, "states twice, optimizer, latest; ours"
    back = from_deepspeed(tmp_path / "universal", tmp_path / "back")
    same(ours, tmp_path / "back")
    for name in ("training.json", "config.yaml", "tokenizer.model"):
        assert (tmp_path / "back" / name).read_bytes() == (ours / name).read_bytes() or name == "training.json"
    assert Checkpoint(tmp_path / "back").training() == Checkpoint(ours).training()
    assert (back.step, back.resumes, back.remarks) == (7, True, [])


def test_small_files_hold_the_same(ours, exported, tmp_path, monkeypatch):
    monkeypatch.setattr(universal_import, "FILE_ELEMENTS", 3000)
    from_deepspeed(exported, tmp_path / "back")
    assert len(list((tmp_path / "back").glob("rank_*"))) > 3
    same(ours, tmp_path / "back")


def test_files_are_what_deepspeed_reads(ours, exported):
    """The keys that its loader takes without a default: deepspeed/runtime/engine.py, base_optimizer.py, stage3.py."""
    assert (exported / "latest_universal").read_text() == "step_00000007"
    folder = exported / "step_00000007"
    place = folder / "zero" / f"layers.{TABLE}"
    assert sorted(path.name for path in place.iterdir()) == ["exp_avg.pt", "exp_avg_sq.pt", "fp32.pt", "step.pt"]
    weight = torch.load(place / "fp32.pt", weights_only=True)["param"]
    assert torch.equal(weight, Checkpoint(ours).read(TABLE))
    assert (place / "fp32.pt").stat().st_size < weight.numel() * 4 + 4096, "not the storage of its neighbours"
    step = torch.load(place / "step.pt", weights_only=True)
    assert (step.dtype, step.item()) == (torch.float32, 7.0)
    states = torch.load(folder / "mp_rank_00_model_states.pt", weights_only=True)
    assert (states["global_steps"], states["skipped_steps"], states["global_samples"]) == (8, 1, 56)
    assert states["dp_world_size"] == states["mp_world_size"] == 1
    optimizer = torch.load(folder / "zero" / "optimizer_state.pt", weights_only=True)
    assert optimizer["ds_version"]
    assert optimizer["param_groups"][0] == {"params": []}, "the engine's own rates and decays stay"
    assert optimizer["optimizer_state_dict"]["state"][0]["step"].item() == 7.0


def test_a_recipe_states_what_deepspeed_does_not(experiment, ours, exported, copy, tmp_path):
    root, _ = copy
    shutil.rmtree(root / "step_00000007" / "kilolayer")
    bare = from_deepspeed(root, tmp_path / "bare")
    assert not bare.resumes
    assert "--recipe" in bare.remarks[0]
    full = from_deepspeed(root, tmp_path / "full", experiment)
    same(ours, tmp_path / "full")
    assert full.resumes
    training, saved = Checkpoint(tmp_path / "full").training(), Checkpoint(ours).training()
    assert training["progress"]["samples"] == 7 * experiment.batch.global_batch_size == 56
    assert training["data"]["samples_consumed"] == 8 * experiment.batch.global_batch_size
    assert training["data"]["fingerprint"] == saved["data"]["fingerprint"]
    assert training["optimizer_steps"] == 7
    assert "64 samples" in full.remarks[0]
    assert load_experiment(str(tmp_path / "full" / "config.yaml")) == experiment


def test_training_state_of_another_step_is_not_used(copy, tmp_path):
    root, zero = copy
    for path in zero.glob("*/step.pt"):
        torch.save(9, path)
    report = from_deepspeed(root, tmp_path / "back")
    assert (report.step, report.resumes) == (9, False)
    assert "is of step 7" in report.remarks[0]


@pytest.mark.parametrize("naming", [STAGES, INDEXED])
def test_names_of_pipelines(naming, spec):
    ours = [name for name, _ in LayerList(spec).named_parameters()]
    theirs = deepspeed_names(ours, naming, "layers.", spec)
    assert len(set(theirs.values())) == len(ours)
    assert theirs[TABLE] == "tied_modules.token_embedding.weight"
    index = [layer.name for layer in spec.layers].index("decoder.layers.1")
    expected = {STAGES: "layers.decoder.layers.1.ffn.fc1.weight", INDEXED: f"{index}.ffn.fc1.weight"}
    assert theirs["decoder.layers.1.ffn.fc1.weight"] == expected[naming]
    assert canonical_names(set(theirs.values()), ours, spec, None) == theirs


def test_layer_numbers_need_the_model(ours, experiment, tmp_path):
    to_deepspeed(ours, tmp_path / "universal", naming=INDEXED)
    own = tmp_path / "universal" / "step_00000007" / "kilolayer"
    (own / "config.yaml").unlink()
    with pytest.raises(CheckpointError, match="named by its layer's number; say of which model with --recipe"):
        from_deepspeed(tmp_path / "universal", tmp_path / "back")
    from_deepspeed(tmp_path / "universal", tmp_path / "back", experiment)
    same(ours, tmp_path / "back")


def test_flat_tensors_of_zero_3_get_the_models_shapes(ours, copy, tmp_path):
    root, zero = copy
    for path in [*zero.glob("*/fp32.pt"), *zero.glob("*/exp*.pt")]:
        torch.save(torch.load(path)["param"].flatten(), path)
    from_deepspeed(root, tmp_path / "back")
    same(ours, tmp_path / "back")
    shutil.rmtree(root / "step_00000007" / "kilolayer")
    from_deepspeed(root, tmp_path / "by_states")  # the shapes of zero_pp_rank_0_mp_rank_00_model_states.pt
    same(ours, tmp_path / "by_states")


def test_without_moments_weights_alone(ours, copy, tmp_path):
    root, zero = copy
    for path in [*zero.glob("*/exp*.pt"), *zero.glob("*/step.pt")]:
        path.unlink()
    report = from_deepspeed(root, tmp_path / "back")
    assert (report.moments, report.resumes, report.step) == (False, False, 7), "the step is the engine's counter"
    assert "no moments" in report.remarks[0]
    assert not Checkpoint(tmp_path / "back").has(MOMENTS[0])
    same(ours, tmp_path / "back", (WEIGHT,))


class Evil:
    """Its pickle would run a command."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch {self.witness}",)


def spoil(zero: Path, how: str, witness: Path) -> None:
    place = zero / "layers.decoder.layers.0.ffn.fc1.weight"
    if how == "evil":
        torch.save({"param": Evil(witness)}, place / "fp32.pt")
    elif how == "truncated":
        content = (place / "exp_avg.pt").read_bytes()
        (place / "exp_avg.pt").write_bytes(content[: len(content) // 2])
    elif how == "empty":
        (place / "fp32.pt").write_bytes(b"")
    elif how == "no tensor":
        torch.save({"param": "x"}, place / "fp32.pt")
    elif how == "shape":
        torch.save({"param": torch.zeros(3, 5)}, place / "fp32.pt")
    elif how == "moment's shape":
        torch.save({"param": torch.zeros(3, 5)}, place / "exp_avg_sq.pt")
    elif how == "missing":
        (place / "fp32.pt").unlink()
    elif how == "one moment":
        (place / "exp_avg.pt").unlink()
    elif how == "parameter":
        shutil.rmtree(place)
    elif how == "left over":
        shutil.copytree(place, zero / "layers.decoder.layers.9.ffn.fc1.weight")
    elif how == "steps":
        torch.save(torch.tensor(3.0), place / "step.pt")
    elif how == "no step":
        torch.save(torch.tensor(0.5), place / "step.pt")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("evil", r"fc1.weight/fp32.pt: its pickle wants posix.system, which could run code"),
        ("truncated", r"fc1.weight/exp_avg.pt: damaged \("),
        ("empty", r"fc1.weight/fp32.pt: damaged \("),
        ("no tensor", r"fp32.pt: damaged, it holds no tensor"),
        ("shape", r"fp32.pt: has shape \[3, 5\] instead of \[24, 16\]"),
        ("moment's shape", r"exp_avg_sq.pt: has shape \[3, 5\] instead of \[24, 16\]"),
        ("missing", r"fc1.weight/fp32.pt: is missing"),
        ("one moment", r"exp_avg.pt: is missing, other parameters have one; --weights-only"),
        ("parameter", r"it has no layers.decoder.layers.0.ffn.fc1.weight \(for decoder.layers.0.ffn.fc1.weight\)"),
        ("left over", r"layers.decoder.layers.9.ffn.fc1.weight is no parameter of the model"),
        ("steps", r"is at step .*, .* at .*; all must be at one step"),
        ("no step", r"step.pt: damaged, it holds no number of steps"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_nothing(how, words, copy, tmp_path):
    root, zero = copy
    spoil(zero, how, tmp_path / "witness")
    with pytest.raises(CheckpointError, match=words) as error:
        from_deepspeed(root, tmp_path / "out" / "back")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "witness").exists()
    assert not list(tmp_path.glob("out/*")) + list(tmp_path.glob("out/.*"))


def test_counters_that_cannot_be_read_safely_are_not_needed(copy, tmp_path):
    root, _ = copy
    for path in root.glob("*/*model_states.pt"):
        torch.save({"module": Evil(tmp_path / "witness"), "global_steps": 1}, path)
    report = from_deepspeed(root, tmp_path / "back")
    assert report.step == 7
    assert "posix.system" in report.remarks[0]
    assert not (tmp_path / "witness").exists()


def test_folders_that_are_none(ours, exported, tmp_path):
    for folder, words in [
        (tmp_path / "nothing", "not a universal checkpoint"),
        (ours, "not a universal checkpoint"),
    ]:
        with pytest.raises(CheckpointError, match=words):
            UniversalFolder(folder)
    own = tmp_path / "theirs" / "global_step3"
    own.mkdir(parents=True)
    (own / "zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    with pytest.raises(CheckpointError, match=r"convert it first: python -m deepspeed\.checkpoint\.ds_to_universal"):
        UniversalFolder(tmp_path / "theirs")
    (tmp_path / "theirs" / "latest_universal").write_text("gone")
    with pytest.raises(CheckpointError, match="names 'gone'"):
        UniversalFolder(tmp_path / "theirs")


def test_an_out_that_exists_and_a_name_of_another_step(ours, exported, tmp_path):
    for convert, source in ((to_deepspeed, ours), (from_deepspeed, exported)):
        with pytest.raises(UserError, match="exists already"):
            convert(source, tmp_path)
    with pytest.raises(UserError, match=r"of step 7; name the folder .*step_00000007"):
        from_deepspeed(exported, tmp_path / "step_00000070")
    with pytest.raises(UserError, match=r"--step 5: the optimizer .* has made 7 updates"):
        from_deepspeed(exported, tmp_path / "back", step=5)


def test_a_damaged_source_is_refused_before_anything_is_written(ours, tmp_path):
    shutil.copytree(ours, tmp_path / "step_00000007")
    path = tmp_path / "step_00000007" / rank_file(1)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="differs from its SHA-256"):
        to_deepspeed(tmp_path / "step_00000007", tmp_path / "universal")
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000007"]


@pytest.mark.parametrize("back", [False, True])
def test_a_full_disk_is_one_line_and_leaves_nothing(back, ours, exported, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if back:
        monkeypatch.setattr(universal_import, "write_rank_file", full)
    else:
        write = Path.write_bytes
        monkeypatch.setattr(
            Path, "write_bytes", lambda path, data: (full if "layers.1." in str(path) else write)(path, data)
        )
    with pytest.raises(SaveFailed, match="could not be written \\(No space left on device\\); nothing is left of it"):
        from_deepspeed(exported, tmp_path / "out") if back else to_deepspeed(ours, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_tool(small_recipe, ours, tmp_path, capsys):
    location = Path(__file__).parents[3] / "tools" / "checkpoint.py"
    spec = importlib.util.spec_from_file_location("checkpoint_tool", location)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.main(["to-deepspeed", str(ours), str(tmp_path / "universal")]) == 0
    assert "weights, moments and step of step 7, " in capsys.readouterr().out
    out = tmp_path / "checkpoints" / "step_00000007"
    recipe = ["--recipe", str(small_recipe), *CHANGES]
    assert tool.main(["from-deepspeed", str(tmp_path / "universal"), str(out), *recipe]) == 0
    said = capsys.readouterr().out
    assert "with moments; for resume or --init-from\n  taken for granted: " in said
    same(ours, out)
    assert tool.main(["from-deepspeed", str(tmp_path / "universal"), str(out)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit):
        tool.main(["to-deepspeed", str(ours), str(tmp_path / "x"), "train.seed=1"])
