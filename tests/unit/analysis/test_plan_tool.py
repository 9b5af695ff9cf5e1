"""tools/plan.py as a command."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import targets_plan
from harness import run_group

import pretrain
from pretrain.analysis.plan_check import Resident, check_text, is_near
from pretrain.analysis.plan_memory import GIB, Memory
from pretrain.config.checks import check
from pretrain.config.load import load_experiment


@pytest.fixture
def tiny(tmp_path: Path) -> list[str]:
    """The demo's small sizes over one file of text."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "one.txt").write_text("A text.\n" * 100)
    return ["--recipe", "demo", "--tiny", f"data.train={tmp_path}/texts", f"run.cache={tmp_path}/cache"]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """tools/plan.py as a module."""
    path = Path(pretrain.__file__).parents[1] / "tools" / "plan.py"
    spec = importlib.util.spec_from_file_location("plan_tool", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_it_recommends_is_taken_behind_train_py(
    tool: ModuleType, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.json"
    arguments = ["--gpus", "4", "--gpu-memory", "2", "-o", str(out), "batch.global_batch_size=32"]
    assert tool.main([*tiny, *arguments]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    after = text.partition("recommended for 4 GPUs:\n")[2]
    words = after.partition("\n\n")[0].replace("\\\n", " ").split()
    batch = check(load_experiment("demo", ["batch.global_batch_size=32", *words], tiny=True), 4, "cuda")
    assert batch.world_size == 4
    document = json.loads(out.read_text())
    assert document["plans"][0]["recommended"] == words
    assert document["plans"][0]["options"][0]["tokens_per_second"] is None
    assert document["flops_per_token"]["training"] == 3 * document["flops_per_token"]["forward"]
    assert f"{sum(document['parameters'].values()):,}" in text
    assert not (tmp_path / "cache").exists(), "planning builds nothing"


def test_without_gpus_three_numbers_of_them(
    tool: ModuleType, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main([*tiny, "batch.global_batch_size=1024", "--layer-tflops", "50", "--bandwidth", "10"]) == 0
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.splitlines() if " GPUs of 80 GiB" in line] == ["8", "64", "1024"]
    assert "unknown" not in text.replace("+host", "")[: text.index("+host")]
    assert "50 TFLOP/s (stated)" in text


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--gpus", "0"], "--gpus: 0 is below 1"),
        (["--gpu-memory", "-3"], "-3 is not a number above 0"),
        (["--layer-seconds", "1,2,3"], "--layer-seconds 1,2,3: the model has encoder and decoder layers"),
        (["--layer-seconds", "1,x"], "--layer-seconds"),
        (["--gpus", "7", "batch.global_batch_size=3"], "batch.global_batch_size = 3 cannot be shared by 7 GPUs"),
        (["model.hidden=3"], "unknown key 'model.hidden'"),
        (["--measure", "--layer-tflops", "3"], "not allowed with argument"),
    ],
)
def test_wrong_input_is_one_line(
    tool: ModuleType, tiny: list[str], arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = tool.main([*tiny, *arguments])
    except SystemExit as error:
        code = error.code
    shown = capsys.readouterr()
    assert (code, shown.out, shown.err.count("\n")) == (2, "", 1)
    assert line in shown.err


def test_help_and_version(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for option, expected in (("--help", "--check-memory"), ("--version", f"kilolayer {pretrain.__version__}")):
        with pytest.raises(SystemExit) as ended:
            tool.main([option])
        assert ended.value.code == 0
        assert expected in capsys.readouterr().out


def test_memory_of_a_training_process(small_recipe: Path, tmp_path: Path) -> None:
    """24 MB of state on top of what is there without a model; how near the estimate is, docs/planning.md says."""
    wide = ["model.hidden_size=256", "model.ffn_size=1024", "parallel.pipeline_stages=1", f"run.dir={tmp_path}/run"]
    ((before, peak),) = run_group(targets_plan.resident, 1, str(small_recipe), wide, str(tmp_path))
    assert peak - before > 20e6
    assert before > 50e6


def test_measured_beside_estimated() -> None:
    estimate = Memory(GIB, 2 * GIB, 2 * GIB, GIB, GIB, host=0, save=0)
    text = check_text(estimate, Resident(before=GIB, peak=9 * GIB))
    assert text.splitlines()[-1] == "measured / estimated = 1.143: within 20%"
    assert "estimated  7.000 GiB: state 5.000 + activations 1.000 + logits 1.000" in text
    assert "measured   8.000 GiB: at most 9.000 resident, less 1.000" in text


def test_a_wrong_estimate_is_said() -> None:
    estimate = Memory(GIB, 2 * GIB, 2 * GIB, GIB, GIB, host=0, save=0)
    for peak, near in ((1 + 8.5, False), (1 + 5.5, False), (1 + 8.3, True), (1 + 5.7, True)):
        resident = Resident(before=GIB, peak=int(peak * GIB))
        assert is_near(estimate, resident) is near
        assert ("not within" in check_text(estimate, resident)) is not near
