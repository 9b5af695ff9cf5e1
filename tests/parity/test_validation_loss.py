"""The transformers class alone gives a run's validation loss, of samples as training draws them."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pretrain.config.load import build_experiment
from pretrain.data.loader import validation_batches
from pretrain.data.prepare import PreparedData, prepare
from pretrain.hf.export import export
from pretrain.hf.probe import source_lines
from pretrain.hf.trained import TrainedModel
from pretrain.hf.validation import Differs, NotComputed, check_validation_loss, validation_loss_of
from pretrain.objectives.cross_entropy import count_targets, cross_entropy_sum

from .checkpoints import BERT, CONFIG, DATA, GPT, MakeCheckpoint, with_model
from .ours import whole_model

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = 7  # no multiple of the batch size
CASES = {
    "causal_lm": (GPT, {}, False),
    "causal_lm-documents": (with_model(GPT, block={"kind": "deepnorm"}), {}, True),
    "prefix_lm": (GPT, {"objective": {"kind": "prefix_lm"}}, False),
    "prefix_lm-documents": (with_model(GPT, block={"kind": "post_ln"}), {"objective": {"kind": "prefix_lm"}}, True),
    "masked_lm": (BERT, {}, False),
    "masked_lm-documents": (BERT, {}, True),
    "span_denoising": (CONFIG, {}, False),
    "bart_denoising": (CONFIG, {"objective": {"kind": "bart_denoising"}}, False),
}


@pytest.fixture(scope="session")
def corpus(tokenizer_model: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short documents, so that a sample holds several, and a tokenizer."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = source_lines()
    for number in range(0, len(lines), 3):
        (folder / f"{number}.txt").write_text("\n".join(lines[number : number + 3]))
    (folder / "tokenizer.model").write_bytes(tokenizer_model)
    return folder


@pytest.fixture
def describe(corpus: Path) -> Callable[..., dict]:
    """`describe(base, document_mask, **sections)`: a config over the corpus."""

    def build(base: dict, document_mask: bool, **sections: object) -> dict:
        data = {
            **DATA,
            "train": str(corpus),
            "glob": "*.txt",
            "tokenizer": str(corpus / "tokenizer.model"),
            "validation_fraction": 0.2,
            "document_mask": document_mask,
        }
        fixed = {"run": {"cache": str(corpus / "cache")}, "evaluation": {"samples": SAMPLES}}
        batch = {"global_batch_size": 4, "micro_batch_size": 4}
        return {**base, **fixed, "data": data, "batch": batch, **sections}

    return build


def our_loss(trained: TrainedModel, data: PreparedData) -> float:
    """Of the training engine's modules, documents and prefixes told apart, in fp64."""
    model = whole_model(trained, data.objective.segmented)
    total, count = 0.0, 0
    for batch in validation_batches(data.validation, SAMPLES, 4, rank=0, size=1):
        inputs = [name for name in ("input_ids", "attention_mask", "decoder_input_ids", "sample_key") if name in batch]
        with torch.no_grad():
            (logits,) = model(tuple(batch[name] for name in inputs))
        total += float(cross_entropy_sum(logits, batch["labels"]))
        count += int(count_targets(batch["labels"]))
    return total / count


@pytest.mark.parametrize("name", CASES)
def test_the_class_alone_gives_the_loss(name: str, describe, make_checkpoint: MakeCheckpoint, tmp_path: Path):
    base, sections, document_mask = CASES[name]
    config = describe(base, document_mask, **sections)
    checkpoint = make_checkpoint(tmp_path / "checkpoint", config)
    export(checkpoint, tmp_path / "hf", verify=False)
    data = prepare(build_experiment(config), quiet=True)
    assert document_mask <= any((data.validation[i]["attention_mask"].max() > 1) for i in range(SAMPLES))
    found = validation_loss_of(tmp_path / "hf", data.validation, SAMPLES, micro_batch_size=4)
    assert found == pytest.approx(our_loss(TrainedModel.open(checkpoint), data), abs=1e-5)  # fp32 arithmetic


def test_packed_pairs_are_not_for_bart(describe, make_checkpoint: MakeCheckpoint, tmp_path: Path):
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("".join(f"line {number}\tZeile {number}\n" for number in range(200)))
    config = describe(CONFIG, True, objective={"kind": "translation"})
    config["data"] = {**config["data"], "train": str(pairs), "glob": "**/*"}
    export(make_checkpoint(tmp_path / "checkpoint", config), tmp_path / "hf", verify=False)
    data = prepare(build_experiment(config), quiet=True)
    with pytest.raises(NotComputed, match=r"Bart.* cannot be told the documents of a sample apart"):
        validation_loss_of(tmp_path / "hf", data.validation, SAMPLES)


# A run and its folder.


@pytest.fixture
def run(describe, make_checkpoint: MakeCheckpoint, tmp_path: Path) -> Path:
    """A run's folder after an evaluation at step 7, and its export RUN/hf."""
    config, run = describe(GPT, False), tmp_path / "run"
    data = prepare(build_experiment(config), quiet=True)
    state = {"data": {"fingerprint": data.fingerprint}}
    checkpoint = make_checkpoint(run / "checkpoints" / "step_00000007", config, **state)
    (run / "config.yaml").write_bytes((checkpoint / "config.yaml").read_bytes())
    log(run, {"step": 7, "validation_loss": our_loss(TrainedModel.open(run), data)})
    export(run, run / "hf", verify=False)
    return run


def log(run: Path, *lines: dict) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def logged(run: Path) -> float:
    return json.loads((run / "metrics.jsonl").read_text())["validation_loss"]


def test_the_loss_is_compared_and_recorded(run: Path):
    result = check_validation_loss(TrainedModel.open(run), run / "hf")
    assert result.exact
    assert result.loss == pytest.approx(logged(run), abs=1e-5)
    assert f"(run: {logged(run):.6f}, difference " in result.line()
    assert json.loads((run / "summary.json").read_text())["export_validation_loss"] == result.loss


def test_another_loss_is_refused(run: Path):
    log(run, {"step": 7, "validation_loss": logged(run) + 2e-4})
    with pytest.raises(Differs, match=r"difference 2\.0e-04\), more than 0\.0001"):
        check_validation_loss(TrainedModel.open(run), run / "hf")
    assert not (run / "summary.json").exists()


def test_a_loss_of_another_step_is_not_compared(run: Path):
    log(run, {"step": 4, "validation_loss": 1.0})
    result = check_validation_loss(TrainedModel.open(run), run / "hf")
    assert result.run is None
    assert "(the run was not evaluated at this step)" in result.line()


def test_what_rounding_costs_has_no_bound(run: Path):
    export(run, run / "half", dtype="bfloat16", verify=False)
    log(run, {"step": 7, "validation_loss": logged(run) + 2e-4})
    result = check_validation_loss(TrainedModel.open(run), run / "half")
    assert not result.exact
    assert result.loss == pytest.approx(logged(run), abs=0.05)


def test_without_the_runs_data_nothing_is_computed(run: Path, corpus: Path, tmp_path: Path):
    trained = TrainedModel.open(run)
    moved = trained.checkpoint.folder.rename(tmp_path / "step_00000007")
    with pytest.raises(NotComputed, match="lies in no run"):
        check_validation_loss(TrainedModel.open(moved), run / "hf")
    moved.rename(trained.checkpoint.folder)
    (corpus / "cache").rename(corpus / "elsewhere")
    try:
        with pytest.raises(NotComputed, match=r"run\.cache = .* holds no tokens"):
            check_validation_loss(trained, run / "hf")
    finally:
        (corpus / "elsewhere").rename(corpus / "cache")
    new = corpus / "new.txt"
    new.write_text("something else")
    try:
        with pytest.raises(NotComputed, match=r"not what the run was trained on \(corpus: "):
            check_validation_loss(trained, run / "hf")
    finally:
        new.unlink()


def test_the_tool_says_it_and_refuses(run: Path, capsys: pytest.CaptureFixture[str]):
    main = runpy.run_path(str(ROOT / "tools" / "convert_hf.py"))["main"]
    assert main(["verify", str(run), str(run / "hf")]) == 0
    assert f"(run: {logged(run):.6f}, difference " in capsys.readouterr().out
    log(run, {"step": 7, "validation_loss": logged(run) + 1})
    assert main(["verify", str(run), str(run / "hf")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "validation loss" in error
