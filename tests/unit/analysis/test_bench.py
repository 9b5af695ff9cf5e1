"""The benchmark: the ratio's arithmetic, what a measurement holds, and that other work is not timed. No times."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import targets_bench
from harness import run_group

import pretrain
from pretrain.analysis.bench_machine import busy_seconds, machine, peak_resident_bytes
from pretrain.analysis.bench_report import text
from pretrain.analysis.bench_sides import Options
from pretrain.analysis.bench_statistics import paired_ratio
from pretrain.analysis.bench_suite import SUITES, Case, cases
from pretrain.config.load import load_experiment
from pretrain.errors import EXIT_ORPHANED
from pretrain.hf.hosts import host_for
from pretrain.hf.trained import Architecture

SHORT = Options(repeats=2, warmup=1)
LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "one": (1, []),
    "two_stages": (2, ["parallel.pipeline_stages=2"]),
    "data_parallel": (2, []),
    "recompute": (1, ["train.activation_checkpointing=2"]),
}


AGAINST_TRAINER = replace(SHORT, against="hf")
ONE_BATCH = ("batch.micro_batch_size=8", "model.block.kind=post_ln")
NATIVE: dict[str, tuple[str, list[str]]] = {
    "encoder_decoder": ("BartForConditionalGeneration", []),
    "pre_ln": (
        "GPT2LMHeadModel",
        [
            "model={family: decoder, encoder_layers: 0, embedding_norm: false, block: {kind: pre_ln}}",
            "objective.kind=causal_lm",
        ],
    ),
    "encoder": (
        "BertForMaskedLM",
        ["model={family: encoder, decoder_layers: 0}", "objective.kind=masked_lm"],
    ),
    "folded": (
        "OPTForCausalLM",
        [
            "model={family: decoder, encoder_layers: 0, embedding_norm: false, block: {kind: deepnorm}}",
            "objective.kind=causal_lm",
        ],
    ),
    "bf16": ("BartForConditionalGeneration", ["train.precision=bf16"]),
}


def measured(
    recipe: Path, folder: Path, processes: int, *overrides: str, sabotage: str | None = None, options: Options = SHORT
) -> list[Any]:
    argv = [f"run.dir={folder}", *overrides]
    return run_group(targets_bench.measure, processes, str(recipe), argv, options, sabotage)


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """tools/bench.py as a module."""
    path = Path(pretrain.__file__).parents[1] / "tools" / "bench.py"
    spec = importlib.util.spec_from_file_location("bench_tool", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestPairedRatio:
    def test_a_slow_spell_hits_both_and_cancels(self) -> None:
        theirs = [1.0, 1.1, 9.0, 8.0, 1.0, 1.2, 1.0]
        ratio = paired_ratio([1.25 * seconds for seconds in theirs], theirs)
        assert [ratio.median, ratio.low, ratio.high] == pytest.approx([1.25, 1.25, 1.25])
        assert ratio.pairs == 7

    def test_an_outlier_moves_neither_median_nor_interval(self) -> None:
        ours = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8]
        calm, disturbed = paired_ratio(ours, [1.0] * 9), paired_ratio([*ours[:-1], 100.0], [1.0] * 9)
        assert calm == disturbed
        assert (calm.median, calm.low, calm.high) == (1.4, 1.1, 1.7)

    @pytest.mark.parametrize(
        ("pairs", "rank", "confidence"),
        [(1, 1, 0.0), (5, 1, 1 - 2 / 32), (6, 1, 1 - 2 / 64), (9, 2, 1 - 20 / 512), (15, 4, 1 - 2 * 576 / 2**15)],
    )
    def test_interval_lies_between_order_statistics(self, pairs: int, rank: int, confidence: float) -> None:
        """Ranks and coverages as in tables of the sign test."""
        ratio = paired_ratio([float(i) for i in range(1, pairs + 1)], [1.0] * pairs)
        assert (ratio.low, ratio.high) == (rank, pairs + 1 - rank)
        assert ratio.confidence == pytest.approx(confidence)

    def test_interval_covers_as_it_says(self) -> None:
        """A skewed distribution whose median is 1.1: the share of intervals that hold it is the stated one."""
        draws = 1.1 * np.random.default_rng(1).lognormal(sigma=0.5, size=(4000, 9))
        ratios = [paired_ratio(list(row), [1.0] * 9) for row in draws]
        covered = np.mean([ratio.low <= 1.1 <= ratio.high for ratio in ratios])
        assert covered == pytest.approx(ratios[0].confidence, abs=0.015)

    @pytest.mark.parametrize(("ours", "theirs"), [([], []), ([1.0], [1.0, 2.0])])
    def test_no_pairs(self, ours: list[float], theirs: list[float]) -> None:
        with pytest.raises(ValueError, match="no pairs"):
            paired_ratio(ours, theirs)


@pytest.mark.parametrize("name", LAYOUTS)
def test_figures(name: str, small_recipe: Path, tmp_path: Path) -> None:
    processes, overrides = LAYOUTS[name]
    first, *others = measured(small_recipe, tmp_path, processes, *overrides)
    for figures in others:
        # All but the machine's load, which each rank reads for itself.
        assert {**figures, "others_cores": None} == {**first, "others_cores": None}
    assert first["layers"] == 6
    assert first["tokens_per_step"] % 8 == 0
    assert first["threads"] == {"each_process": 1, "rival": processes}
    assert first["micro_batches"] * first["data_parallel_size"] * first["micro_batch_size"] == 8
    for side in (first["engine"], first["rival"]):
        assert len(side["step_seconds"]) == 2
        assert min([side["start_up_seconds"], side["first_step_seconds"], *side["step_seconds"]]) > 0
        assert side["tokens_per_second"] * side["median_step_seconds"] == pytest.approx(first["tokens_per_step"])
    ratios = [a / b for a, b in zip(first["engine"]["step_seconds"], first["rival"]["step_seconds"], strict=True)]
    assert [first["ratio"]["low"], first["ratio"]["high"]] == sorted(ratios)
    peaks, before = first["engine"]["peak_resident_bytes"], first["engine"]["resident_bytes_before"]
    assert len(peaks) == processes
    assert all(peak > at_first > 2**26 for peak, at_first in zip(peaks, before, strict=True))
    assert first["largest_loss_difference"] < 1e-6
    assert len(first["waiting_cpu_shares"]) == processes - 1
    assert "6" in text(machine(), [first])


@pytest.mark.parametrize("name", NATIVE)
def test_the_trainer_does_the_same(name: str, small_recipe: Path, tmp_path: Path) -> None:
    """Three steps of a real Trainer over the native class, in turns with the engine."""
    native, overrides = NATIVE[name]
    argv = [*ONE_BATCH, *overrides]
    (figures,) = measured(small_recipe, tmp_path, 1, *argv, options=AGAINST_TRAINER)
    rival, folded, bf16 = figures["rival"], name == "folded", name == "bf16"
    assert (rival["class"], rival["optimizer"], rival["learning_rate_0"]) == (native, "adamw_torch_fused", folded)
    assert rival["attention"] == "sdpa"
    assert len(rival["step_seconds"]) == len(figures["engine"]["step_seconds"]) == 2
    assert min([*rival["step_seconds"], *rival["step_cpu_seconds"]]) > 0
    # fp32: rounding of two implementations in three steps; bf16: weights rounded on one side only.
    assert figures["largest_loss_difference"] < (2e-2 if bf16 else 3e-6)
    assert (figures["largest_grad_norm_difference"] is None) == folded
    said = text(machine(), [{**figures, "bound": 0.95}], suite=True)
    assert native in said
    assert ("learning rate 0" in said) == folded


@pytest.mark.parametrize("sabotage", targets_bench.TRAINER_SABOTAGES)
def test_other_work_of_the_trainer_is_not_timed(sabotage: str, small_recipe: Path, tmp_path: Path) -> None:
    (message,) = measured(small_recipe, tmp_path, 1, *ONE_BATCH, sabotage=sabotage, options=AGAINST_TRAINER)
    step = {"update": 2}.get(sabotage, 1)
    figure = "gradient norm" if sabotage == "gradient" else "loss"
    assert message.startswith(f"step {step}: {figure} ")
    assert message.endswith("of the Hugging Face Trainer: not the same work, so no times are given")


class TestSuite:
    @pytest.mark.parametrize("case", SUITES["families"], ids=lambda case: case.name)
    def test_every_case_has_its_native_class(self, case: Case, tmp_path: Path) -> None:
        """Also in its tiny sizes: the recipe is right, and a class holds the model exactly."""
        native = {"encoder": "BertForMaskedLM", "encoder_decoder": "BartForConditionalGeneration"}
        decoders = {"pre_ln": "GPT2LMHeadModel"}
        wanted = native.get(case.model.family) or decoders.get(case.model.block, "OPTForCausalLM")
        for tiny in (False, True):
            model = load_experiment(str(case.write(tmp_path)), tiny=tiny).model
            lengths = (128 if model.encoder_layers else 0, 128 if model.decoder_layers else 0)
            assert host_for(Architecture(model, 500, *lengths)).model_class.__name__ == wanted

    def test_sizes_and_bounds(self) -> None:
        """As the comparison is promised: ties where matrix products decide, 5% ahead elsewhere."""
        bounds = {case.name: case.bound for case in SUITES["families"]}
        assert len(bounds) == len(SUITES["families"]) == 22
        assert {bound for name, bound in bounds.items() if name.endswith("12x256-fp32")} == {1.05}
        assert {bound for name, bound in bounds.items() if not name.endswith("12x256-fp32")} == {0.95}

    def test_patterns(self) -> None:
        assert [case.name for case in cases("families", "encoder-*-48x128-bf16,decoder-pre_ln-12x256-fp32")] == [
            "decoder-pre_ln-12x256-fp32",
            "encoder-deepnorm-48x128-bf16",
        ]
        assert cases("families", None) == SUITES["families"]


@pytest.mark.parametrize("sabotage", targets_bench.SABOTAGES)
def test_other_work_is_not_timed(sabotage: str, small_recipe: Path, tmp_path: Path) -> None:
    (message,) = measured(small_recipe, tmp_path, 1, sabotage=sabotage)
    step = {"update": 2}.get(sabotage, 1)
    figure = "gradient norm" if sabotage == "gradient" else "loss"
    assert message.startswith(f"step {step}: {figure} ")
    assert message.endswith("not the same work, so no times are given")


def test_every_rank_learns_of_other_work(small_recipe: Path, tmp_path: Path) -> None:
    first, second = measured(small_recipe, tmp_path, 2, "parallel.pipeline_stages=2", sabotage="micro_batch")
    assert first == second
    assert "not the same work" in first


def test_bf16_against_autocast(small_recipe: Path, tmp_path: Path) -> None:
    (figures,) = measured(small_recipe, tmp_path, 1, "train.precision=bf16")
    assert 0 < figures["largest_loss_difference"] < 2e-2


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--recipe", "no_such_recipe"], "no_such_recipe"),
        (["--recipe", "{recipe}", "model.hiden_size=8"], "model.hidden_size"),
        (["--recipe", "{recipe}", "--processes", "2", "parallel.pipeline_stages=3"], "parallel.pipeline_stages"),
        (["--recipe", "{recipe}", "--depths", "2,1", "parallel.pipeline_stages=6"], "parallel.pipeline_stages"),
        (["--recipe", "{recipe}", "train.precision=fp16"], "train.precision"),
        (["--recipe", "{recipe}", "--deepspeed_config", "nowhere.json"], "nowhere.json"),
        (["--recipe", "{recipe}", "--repeats", "0"], "--repeats"),
        (["--recipe", "{recipe}", "--depths", "2,x"], "--depths"),
        (["--recipe", "{recipe}", "--plain-adamw", "sgd"], "--plain-adamw"),
        ([], "--recipe"),
        (["--recipe", "{recipe}", "--suite", "families"], "--suite"),
        (["--suite", "family"], "--suite"),
        (["--suite", "families", "--depths", "2"], "--depths"),
        (["--suite", "families", "--only", "gpt"], "--only gpt"),
        (["--recipe", "{recipe}", "--only", "gpt"], "--only"),
        (["--recipe", "{recipe}", "--against", "lightning"], "--against"),
    ],
)
def test_wrong_input_is_one_line(
    argv: list[str], named: str, tool: ModuleType, small_recipe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = [word.format(recipe=small_recipe) for word in argv]
    try:
        code = tool.main(argv)
    except SystemExit as end:
        code = end.code
    out, error = capfd.readouterr()
    assert (code, out) == (2, "")
    assert error.startswith("error: ")
    assert named in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["parallel.pipeline_stages=2"], "parallel.pipeline_stages=1"),
        (["batch.micro_batch_size=4"], "batch.micro_batch_size = 4"),
        (["model.dropout=0.1"], "model.dropout = 0.1"),
        (["loss.z_loss=1e-4"], "loss.z_loss = 0.0001"),
        (["optimizer.no_decay=[norms]"], "optimizer.no_decay = [norms]"),
        (["model.embedding_norm=false"], "model.embedding_norm"),
        (["model={family: decoder, encoder_layers: 0}", "objective.kind=prefix_lm"], "prefix_lm"),
    ],
)
def test_what_the_trainer_does_not_do(
    overrides: list[str], named: str, tool: ModuleType, small_recipe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(["--recipe", str(small_recipe), "--against", "hf", *ONE_BATCH, *overrides]) == 2
    out, error = capfd.readouterr()
    assert error.startswith("error: ")
    assert named in error
    assert (out, error.count("\n")) == ("", 1)


def test_help_and_version(tool: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    for option, said in (("--help", "python tools/bench.py --recipe demo"), ("--version", pretrain.__version__)):
        with pytest.raises(SystemExit) as end:
            tool.main([option])
        assert end.value.code == 0
        assert said in capfd.readouterr().out


@pytest.mark.slow
def test_one_command_starts_the_ranks(
    tool: ModuleType, small_recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "bench.json"
    argv = ["--recipe", str(small_recipe), "--depths", "1,2", "--repeats", "1", "-o", str(out)]
    assert tool.main([*argv, "parallel.pipeline_stages=2"]) == 0
    document = json.loads(out.read_text())
    assert [figures["layers"] for figures in document["measurements"]] == [2, 4]
    assert all(figures["world_size"] == 2 for figures in document["measurements"])
    assert document["machine"]["torch"].startswith("2.")
    assert document["command"][:3] == ["tools/bench.py", "--recipe", str(small_recipe)]
    table = capfd.readouterr().out.splitlines()
    header = next(i for i, line in enumerate(table) if "engine s" in line and "ratio" in line)
    assert len(table[header].split("  ")) > 5
    assert [line.split()[0] for line in table[header + 1 : header + 3]] == ["2", "4"]


@pytest.mark.slow
def test_a_suite_ends_in_a_table(tool: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "suite.json"
    corpus = Path(sysconfig.get_path("stdlib")) / "asyncio"
    data = [f"data.train={corpus}", "data.glob=**/*.py", f"run.cache={tmp_path}"]
    case = "encoder_decoder-deepnorm-48x128-fp32"
    assert tool.main(["--suite", "families", "--only", case, "--tiny", "--repeats", "1", "-o", str(out), *data]) == 0
    (figures,) = json.loads(out.read_text())["measurements"]
    assert (figures["recipe"], figures["bound"], figures["against"]) == (f"{case}-tiny", 0.95, "hf")
    table = capfd.readouterr().out
    assert f"{case}-tiny  BartForConditionalGeneration" in table
    assert ("0.95  holds" in table) == (figures["ratio"]["median"] <= 0.95)


def test_a_rank_that_dies_ends_the_others(tool: ModuleType) -> None:
    code = "import os, sys, time; sys.exit(3) if os.environ['RANK'] == '1' else time.sleep(60)"
    assert tool.start_ranks([sys.executable, "-c", code], 2) == 3
    assert tool.exit_reason(3) == "exit code 3"
    assert tool.exit_reason(-9) == "signal 9: Killed"


def test_ranks_end_with_the_command_that_started_them(tool: ModuleType) -> None:
    code = f"import runpy, time; runpy.run_path({tool.__file__!r})['end_with_parent'](); print(); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-uc", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as rank:
        assert rank.stdin is not None
        assert rank.stdout is not None
        assert rank.stdout.read(1) == b"\n"
        assert rank.poll() is None
        rank.stdin.close()
        assert rank.wait(30) == EXIT_ORPHANED


def test_machine_counts_work() -> None:
    before = busy_seconds()
    if before is None:
        pytest.skip("this system does not tell how busy it is")
    np.linalg.svd(np.random.default_rng(0).normal(size=(400, 400)))
    after = busy_seconds()
    assert after is not None
    assert after > before
    assert peak_resident_bytes() > 2**26
    assert machine()["cores"] >= 1
