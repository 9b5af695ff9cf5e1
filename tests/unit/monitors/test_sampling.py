"""When depth signals are sampled, their rows, and that nothing but training is in them."""

from __future__ import annotations

import json

import pytest
import targets_engine as targets
import torch
from harness import lines, train

from pretrain.monitors.norm_inputs import NormInputs
from pretrain.monitors.signals import Rows, stack_depths

STEPS = ("train.max_steps=5", "monitors.interval=2", "checkpoint.interval=0")


@pytest.fixture(scope="module")
def runs(small_recipe, tmp_path_factory):
    """The same training without validations, and with one at every step."""
    found = {}
    for interval in (0, 1):
        folder = tmp_path_factory.mktemp("run")
        train(["--recipe", str(small_recipe), f"run.dir={folder}", *STEPS, f"evaluation.interval={interval}"])
        found[interval] = lines(folder / "layers.jsonl")
    return found


def test_step_1_and_every_interval(runs):
    assert [(entry["step"], entry["samples"]) for entry in runs[0]] == [(1, 8), (2, 16), (4, 32)]
    for entry in runs[0]:
        norms, updates = entry["signals"]["norm_input_rms"], entry["signals"]["update_norm"]
        assert {group: len(rows) for group, rows in norms.items()} == {
            "encoder.self_attention": 3,
            "encoder.ffn": 3,
            "decoder.self_attention": 3,
            "decoder.cross_attention": 3,
            "decoder.ffn": 3,
        }
        assert {group: len(rows) for group, rows in updates.items()} == {
            "token_embedding": 1,
            "encoder.embeddings": 1,
            "encoder": 3,
            **{f"encoder.{part}": 3 for part in ("self_attention", "ffn", "norms")},
            "decoder.embeddings": 1,
            "decoder": 3,
            **{f"decoder.{part}": 3 for part in ("self_attention", "cross_attention", "ffn", "norms")},
        }
        assert all(value > 0 for rows in (norms | updates).values() for value in rows)
    assert json.dumps(runs[0]) != json.dumps([runs[0][0]] * 3)


@pytest.mark.parametrize("signal", ["update_norm", "gradient_norm", "adam_rms", "norm_input_rms"])
def test_validation_is_not_counted(runs, signal):
    """A step that is validated shows what it showed without."""
    assert [entry["signals"][signal] for entry in runs[1]] == [entry["signals"][signal] for entry in runs[0]]


def test_rows():
    rows = Rows.of({"a": 2, "b": 1, "c": 3})
    assert rows.total == 6
    assert [rows.index("a", 1), rows.index("b", 0), rows.index("c", 2)] == [1, 2, 5]
    split = rows.split(torch.arange(6.0))
    assert split == {"a": [0.0, 1.0], "b": [2.0], "c": [3.0, 4.0, 5.0]}


@pytest.mark.parametrize("kind", ["deepnorm", "post_ln", "pre_ln"])
@pytest.mark.parametrize("tied", [True, False])
def test_rows_are_the_models(kind, tied):
    """A row for all that has parameters; none for the head, which has not."""
    spec = targets.model_spec(targets.experiment({"model.block": {"kind": kind}, "model.tie_embeddings": tied}))
    expected = {"token_embedding": 1, "encoder.embeddings": 1, "encoder": 2, "decoder.embeddings": 1, "decoder": 2}
    if not tied:
        expected["output_projection"] = 1
    if kind == "pre_ln":
        expected |= {"encoder.final_norm": 1, "decoder.final_norm": 1}
    assert stack_depths(spec) == expected
    assert set(NormInputs(spec).rows.groups) == {
        "encoder.self_attention",
        "encoder.ffn",
        "decoder.self_attention",
        "decoder.cross_attention",
        "decoder.ffn",
    }


def test_a_row_without_any_element_is_zero():
    signal = NormInputs(targets.model_spec(targets.experiment({})))
    squares, elements = torch.zeros(2, signal.rows.total)
    squares[1], elements[1] = 8.0, 2.0
    rows = signal.profiles(torch.cat([squares, elements]), torch.zeros(0))["norm_input_rms"]
    assert [value for values in rows.values() for value in values] == [0.0, 2.0, *[0.0] * (signal.rows.total - 2)]
