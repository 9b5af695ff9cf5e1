"""tools/convert_hf.py and tools/generate.py on a run's folder."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pretrain.errors import UserError
from pretrain.hf.complete import exported_folder, open_completer, stale
from pretrain.hf.completers import Options
from pretrain.hf.export import export
from pretrain.hf.hosts import host_for
from pretrain.hf.trained import TrainedModel
from pretrain.state.manifest import Manifest

from .checkpoints import CONFIG, MakeCheckpoint, with_model
from .conftest import Exported

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path) -> Path:
    """A run's folder after step 7."""
    run = tmp_path / "run"
    shutil.copytree(checkpoint, run / "checkpoints" / "step_00000007")
    shutil.copy(checkpoint / "config.yaml", run)
    lines = [{"step": 7, "loss": 5.5, "tokens": 1000}, {"step": 7, "validation_loss": 5.25}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 8, "lo')
    (run / "summary.json").write_text(json.dumps({"step": 7, "unigram_entropy": 5.72}))
    return run


@pytest.fixture(scope="module")
def bart(exported: Callable[[dict], Exported]) -> Path:
    return exported(CONFIG).folder


def tool(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.slow
def test_export_verify_import_and_generate_by_the_tools(run: Path, tmp_path: Path):
    out = run / "hf"
    result = tool("convert_hf.py", "export", run, out)
    assert result.returncode == 0, result.stderr
    assert "BartForConditionalGeneration" in result.stdout
    assert "fold in memory, fp64" in result.stdout
    assert result.stderr == ""

    result = tool("convert_hf.py", "verify", run, out)
    assert result.returncode == 0, result.stderr
    assert "validation loss not computed: " in result.stdout

    (out / "tokenizer.model").write_bytes(b"another")
    result = tool("convert_hf.py", "verify", run, out)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "tokenizer.model" in result.stderr

    result = tool("convert_hf.py", "export", run, out, "--overwrite")
    assert result.returncode == 0, result.stderr
    result = tool("convert_hf.py", "import", out, tmp_path / "imported")
    assert result.returncode == 0, result.stderr
    assert TrainedModel.open(tmp_path / "imported").architecture == TrainedModel.open(run).architecture

    result = tool("generate.py", run, "--prompt", "def <extra_id_0>(self):", "--max-new-tokens", "5")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("def ")
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("convert_hf.py", ("export", "no/such", "out"), "no/such: neither a checkpoint nor a run"),
        ("convert_hf.py", ("export", "x", "out", "--dtype", "int8"), "--dtype"),
        ("convert_hf.py", (), "required"),
        ("generate.py", ("no/such", "--prompt", "a"), "no/such: no such folder"),
        ("generate.py", (".",), "--prompt"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    name: str, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
):
    main = runpy.run_path(str(ROOT / "tools" / name))["main"]
    try:
        code = main(list(arguments))
    except SystemExit as end:
        code = end.code
    assert code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize("name", ["convert_hf.py", "generate.py"])
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_has_examples(name: str, option: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "tools" / name))["main"]([option])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert f"python tools/{name} " in out if option == "--help" else "kilolayer " in out


def test_export_of_a_run_states_its_figures(run: Path):
    result = export(run, run / "hf").verification
    assert result is not None
    summary = json.loads((run / "summary.json").read_text())
    assert summary["unigram_entropy"] == 5.72
    assert summary["export_max_logit_difference_fp64"] == result.fold_fp64
    assert summary["export_max_logit_difference_saved"] == result.saved_fp64
    card = (run / "hf" / "README.md").read_text()
    for figure in ("5.25", "5.72", "7 of 1000", "1,000"):
        assert figure in card


def test_figures_of_another_step_stay_out_of_the_card(run: Path):
    (run / "summary.json").write_text(json.dumps({"step": 9, "validation_loss": 1.11}))
    export(run, run / "hf", verify=False)
    card = (run / "hf" / "README.md").read_text()
    assert "1.11" not in card
    assert "5.25" in card


def test_only_an_earlier_export_is_overwritten(checkpoint: Path, tmp_path: Path):
    out = tmp_path / "hf"
    out.mkdir()
    export(checkpoint, out, verify=False)  # an empty folder is taken
    with pytest.raises(UserError, match="holds an earlier export"):
        export(checkpoint, out)
    (out / "leftover").touch()
    export(checkpoint, out, verify=False, overwrite=True)
    assert not (out / "leftover").exists()

    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(UserError, match="not empty and not an earlier export"):
        export(checkpoint, other, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "other"]


def test_models_that_no_host_holds(make_checkpoint: MakeCheckpoint, tmp_path: Path):
    for model, reason in (
        ({"block": {"kind": "pre_ln"}}, "model.block.kind pre_ln is not among"),
        ({"embedding_norm": False}, "model.embedding_norm is false"),
    ):
        folder = make_checkpoint(tmp_path / next(iter(model)), with_model(**model))
        with pytest.raises(UserError, match=reason):
            host_for(TrainedModel.open(folder).architecture)


def test_wrong_export_options(checkpoint: Path, tmp_path: Path):
    with pytest.raises(UserError, match="--dtype int8"):
        export(checkpoint, tmp_path / "hf", dtype="int8")
    with pytest.raises(UserError, match=r"cannot be made \(Not a directory\)"):
        export(checkpoint, checkpoint / "config.yaml" / "hf")
    with pytest.raises(UserError, match="--max-shard-size huge"):
        export(checkpoint, tmp_path / "hf", max_shard_size="huge")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_without_its_tokenizer(make_checkpoint: MakeCheckpoint, tmp_path: Path):
    folder = make_checkpoint(tmp_path / "c")
    manifest = Manifest.read(folder)
    del manifest.files["tokenizer.model"]
    manifest.write(folder)
    (folder / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"it has no tokenizer\.model"):
        TrainedModel.open(folder)


def test_blanks_are_filled_in_place(bart: Path):
    filler = open_completer(bart)
    blanks = filler.sentinels
    prompt = filler.encode("def <extra_id_0>(self):\n    return <extra_id_1>\n")
    assert [token for token in prompt if token in blanks] == blanks[:2]

    name, value = filler.encode("area")[:-1], filler.encode("self.width")[:-1]
    output = [2, blanks[0], *name, blanks[1], *value, 3, 0, 0]
    done = filler.put_together(prompt, output)
    assert done.text == "def area(self):\n    return self.width\n"
    assert done.parts == ["area", "self.width"]

    partly = filler.put_together(prompt, [2, blanks[0], *name, 3])
    assert partly.text == "def area(self):\n    return <extra_id_1>\n"


def test_a_prompt_without_blanks_is_continued(bart: Path):
    filler = open_completer(bart)
    assert filler.encode("import os")[-1] == filler.sentinels[0]
    assert filler.complete("import os", Options(max_new_tokens=4)).text.startswith("import os")


def test_sampling_is_seeded_and_beams_search(bart: Path):
    filler = open_completer(bart)
    prompt = "for <extra_id_0> in range(10):"
    first, again, other = (filler.complete(prompt, Options(temperature=5.0, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert filler.complete(prompt) == filler.complete(prompt, Options(seed=9))  # greedy knows no seed
    assert filler.complete(prompt, Options(num_beams=3)).text.startswith("for ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens 0"),
        ({"max_new_tokens": 1000}, "--max-new-tokens 1000"),
        ({"num_beams": 0}, "--num-beams 0"),
        ({"temperature": -1.0}, "--temperature -1.0"),
        ({"temperature": 1.0, "num_beams": 2}, "give one of them"),
    ],
)
def test_wrong_generation_options(options: dict, message: str, bart: Path):
    with pytest.raises(UserError, match=message):
        open_completer(bart).complete("a", Options(**options))


def test_a_prompt_that_is_too_long(bart: Path):
    with pytest.raises(UserError, match=r"--prompt: .* tokens, the model reads at most 39"):
        open_completer(bart).complete("word " * 100)


def test_which_folder_a_run_means(run: Path, bart: Path, tmp_path: Path):
    assert exported_folder(bart) == bart
    with pytest.raises(UserError, match="neither a run"):
        exported_folder(tmp_path)
    folder = exported_folder(run)
    assert folder == run / "hf"
    assert stale(run, folder) is None
    newer = (run / "checkpoints" / "step_00000007").rename(run / "checkpoints" / "step_00000012")
    replace(Manifest.read(newer), step=12).write(newer)
    assert "is of step 7, the newest checkpoint is step_00000012" in (stale(run, folder) or "")
