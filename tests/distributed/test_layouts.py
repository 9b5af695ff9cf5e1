"""One process, data-parallel processes at every ZeRO stage, offloaded state and stages train the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from harness import figures, lines, losses, train
from torch.nn import functional as F

from pretrain.build import model_spec
from pretrain.config.load import load_experiment
from pretrain.data.prepare import prepare
from pretrain.models.layer_list import LayerList
from pretrain.state.reader import Checkpoint

STEPS = ("train.max_steps=12", "evaluation.interval=6", "optimizer.clip_norm=1.4")
LAYOUTS = {
    "zero1_dp2": (2, ["parallel.zero_stage=1"]),
    "zero0_dp2": (2, ["parallel.zero_stage=0", "train.activation_checkpointing=2"]),
    "zero3_dp2": (2, ["parallel.zero_stage=3"]),
    "offload_dp2": (2, ["parallel.offload_optimizer=true", "train.activation_checkpointing=3"]),
    "pp2": (2, ["parallel.pipeline_stages=2"]),
    "pp2_dp2": (4, ["parallel.pipeline_stages=2"]),
    "pp3": (3, ["parallel.pipeline_stages=3"]),
    "recompute": (1, ["train.activation_checkpointing=2"]),
    "recompute_zero2_dp2": (2, ["train.activation_checkpointing=1", "parallel.zero_stage=2"]),
    "recompute_pp2": (2, ["train.activation_checkpointing=3", "parallel.pipeline_stages=2"]),
}


@pytest.fixture(scope="module")
def reference(small_recipe, tmp_path_factory):
    """The run of one process, with dropout: its masks are keyed by sample, not by rank."""
    folder = tmp_path_factory.mktemp("reference")
    argv = ["--recipe", str(small_recipe), f"run.dir={folder}", "model.dropout=0.1", *STEPS]
    train(argv)
    norms = figures(folder, "grad_norm")
    assert min(norms) < 1.4 < max(norms), "some steps must be clipped and some not"
    return folder


def test_source_use_is_the_loss_that_exchanged_sources_cost(reference):
    """From the checkpoint, with plain torch: sample i reads the source of sample i + 5 of 10."""
    experiment = load_experiment(str(reference / "config.yaml"))
    data = prepare(experiment, quiet=True)
    spec, _ = model_spec(experiment, data.tokenizer.vocab_size, data.objective)
    layers = LayerList(spec, seed=0).eval()
    Checkpoint(reference / "checkpoints" / "step_00000012").fill(layers.named_parameters())
    rows = [data.validation[index] for index in range(10)]
    batch = {name: torch.tensor(np.stack([row[name] for row in rows])) for name in rows[0]}
    exchanged = {**batch, **{name: batch[name].roll(-5, 0) for name in ("input_ids", "attention_mask")}}

    @torch.no_grad()
    def loss(batch):
        (logits,) = layers(spec.state({**batch, "sample_key": torch.arange(10)}))
        return float(F.cross_entropy(logits.flatten(0, 1).double(), batch["labels"].flatten()))

    assert figures(reference, "validation_loss")[-1] == pytest.approx(loss(batch), rel=1e-5)
    use = loss(exchanged) - loss(batch)
    assert figures(reference, "source_use")[-1] == pytest.approx(use, abs=2e-5)
    assert json.loads((reference / "summary.json").read_text())["source_use"] == figures(reference, "source_use")[-1]
    (alert,) = [event for event in lines(reference / "events.jsonl") if event.get("signal") == "source_use"]
    assert (alert["level"], alert["step"]) == ("watch", 6), "12 steps wake no encoder, and step 6 follows the warm-up"


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_trains_as_one_process(name, reference, command, tmp_path):
    processes, overrides = LAYOUTS[name]
    train(command(name, "model.dropout=0.1", *STEPS, *overrides), processes)
    # fp32 sums in another order differ by a few units in the last place (6e-8), grown over 12 steps.
    assert losses(tmp_path / name) == pytest.approx(losses(reference), rel=1e-5)
    for key in ("grad_norm", "grad_norm_clipped", "validation_loss"):
        assert figures(tmp_path / name, key) == pytest.approx(figures(reference, key), rel=1e-5)
    # A difference of two losses near 6.5, whose rounding stays.
    assert figures(tmp_path / name, "source_use") == pytest.approx(figures(reference, "source_use"), abs=2e-5)


WALK = {
    2: (2, ["parallel.pipeline_stages=2"]),
    4: (1, ["batch.micro_batch_size=4"]),
    6: (2, ["parallel.zero_stage=2", "parallel.offload_optimizer=true"]),
    8: (4, ["parallel.pipeline_stages=2"]),
    10: (2, ["parallel.zero_stage=3"]),
    11: (2, ["parallel.zero_stage=0"]),
    12: (2, ["parallel.zero_stage=1", "batch.micro_batch_size=1"]),
}
"""Last step of a session -> its processes and layout."""


def test_every_layout_goes_on_where_another_stopped(reference, command, tmp_path):
    """Six changes of layout, all state through the checkpoint: one curve with the run that was never interrupted."""
    for stop, (processes, overrides) in WALK.items():
        train(command("walk", "model.dropout=0.1", *STEPS, f"train.stop_at_step={stop}", *overrides), processes)
    # The same fp32 sums in other orders; as above.
    for key in ("loss", "grad_norm", "grad_norm_clipped", "validation_loss"):
        assert figures(tmp_path / "walk", key) == pytest.approx(figures(reference, key), rel=1e-5)
    found = {event["step"]: event for event in lines(tmp_path / "walk" / "events.jsonl") if event["event"] == "resume"}
    assert list(found) == list(WALK)[:-1], "each session went on where the one before stopped"
    assert [event["zero_stage"] for event in found.values()] == [1, 2, 1, 3, 0, 1]


def test_bf16_layouts_agree(command, tmp_path):
    """bf16 rounds to 3 decimal digits: gradients of 12 steps differ by parts in a thousand, losses by less."""
    bf16 = ("train.precision=bf16", *STEPS)
    train(command("one", *bf16))
    for name, processes, override in (
        ("dp2", 2, "parallel.zero_stage=1"),
        ("zero2", 2, "parallel.zero_stage=2"),
        ("zero3", 2, "parallel.zero_stage=3"),
        ("pp2", 2, "parallel.pipeline_stages=2"),
    ):
        train(command(name, *bf16, override), processes)
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), rel=3e-3)
        assert figures(tmp_path / name, "grad_norm") == pytest.approx(figures(tmp_path / "one", "grad_norm"), rel=3e-2)
