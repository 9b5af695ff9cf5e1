"""What a run will take, against what its tensors take: activations counted at the layers, logits at the loss."""

from __future__ import annotations

import pytest
import torch

from pretrain.analysis.plan import plan_text
from pretrain.analysis.plan_memory import PROCESS_BYTES, stage_memory
from pretrain.analysis.plan_model import Sizes
from pretrain.config.checks import check
from pretrain.config.load import load_experiment
from pretrain.models.layer_list import LayerList
from pretrain.models.registry import FAMILIES
from pretrain.parallel.build import stage_table

VOCABULARY = 500
SIZES = [
    "model.hidden_size=64",
    "model.num_heads=2",
    "batch.micro_batch_size=2",
    "batch.global_batch_size=8",
]
SMALL = ["model.encoder_layers=4", "model.decoder_layers=4", "model.ffn_size=128"]
CASES = {
    "encoder_decoder": ("demo", SMALL, Sizes(48, 20, VOCABULARY)),
    "dropout": ("demo", [*SMALL, "model.dropout=0.1"], Sizes(48, 20, VOCABULARY)),
    "decoder": ("gpt_base", ["model.decoder_layers=4", "model.ffn_size=256"], Sizes(0, 48, VOCABULARY)),
    "gated": (
        "gpt_base",
        ["model.decoder_layers=4", "model.ffn_size=256", "model.activation=swiglu", "model.positions=rotary"],
        Sizes(0, 48, VOCABULARY),
    ),
    "encoder": (
        "bamboo_bert",
        ["model.encoder_layers=8", "model.ffn_size=256", "model.dropout=0"],
        Sizes(48, 0, VOCABULARY),
    ),
    "parallel": ("parallel_gpt", ["model.decoder_layers=4", "model.ffn_size=256"], Sizes(0, 48, VOCABULARY)),
    "sas": ("sas_codeparrot", ["model.decoder_layers=4", "model.ffn_size=256"], Sizes(0, 48, VOCABULARY)),
}


def planned(recipe, overrides, sizes, processes=1):
    """(experiment, model, batch plan, memory of each stage)"""
    common = ["train.precision=fp32", "train.activation_checkpointing=0", f"parallel.pipeline_stages={processes}"]
    experiment = load_experiment(recipe, [*common, *SIZES, *overrides])
    plan = check(experiment, processes, "cpu")
    spec = FAMILIES[experiment.model.family](experiment.model, sizes.vocabulary, sizes.source, sizes.target)
    rows = stage_table(experiment, spec)
    return experiment, spec, plan, [stage_memory(experiment, spec, plan, row, sizes) for row in rows]


def saved_bytes(experiment, spec, sizes):
    """What autograd keeps of one micro-batch of all layers, each storage once and weights left out."""
    layers = LayerList(spec, seed=1)
    rows = experiment.batch.micro_batch_size
    length = {True: sizes.target or sizes.source, False: sizes.source or sizes.target}
    batch = {key: torch.ones(rows, length[key.startswith("decoder")], dtype=torch.long) for key in (*spec.inputs,)} | {
        "sample_key": torch.arange(rows)
    }
    weights = {parameter.untyped_storage().data_ptr() for parameter in layers.parameters()}
    kept = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = layers(spec.state(batch))
    assert output[0].requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("case", CASES)
def test_activations_are_what_autograd_keeps(case):
    recipe, overrides, sizes = CASES[case]
    experiment, spec, _, (memory,) = planned(recipe, overrides, sizes)
    # A third to either side: blocks differ by a few tensors of the residual width out of twelve and more.
    assert memory.activations == pytest.approx(saved_bytes(experiment, spec, sizes), rel=0.33)


def test_logits_lie_on_the_last_stage_alone():
    sizes = Sizes(48, 20, VOCABULARY)
    _, _, _, stages = planned("demo", SMALL, sizes, processes=2)
    # Of one micro-batch of 2 samples: logits, and probabilities that become their gradient, in fp32.
    assert [memory.logits for memory in stages] == [0, 2 * 20 * VOCABULARY * 2 * 4]


def test_parts_add_up_and_data_parallelism_divides_what_zero_shards():
    sizes = Sizes(48, 20, VOCABULARY)
    overrides = [*SMALL, "parallel.pipeline_stages=1"]
    *_, (one,) = planned("demo", overrides, sizes)
    experiment, spec, _, _ = planned("demo", overrides, sizes)
    (row,) = stage_table(experiment, spec)
    two = stage_memory(experiment, spec, check(experiment, 2, "cpu"), row, sizes)
    count = sum(parameter.numel() for parameter in LayerList(spec).parameters())
    assert one.weights == 4 * count
    # The whole gradient, and this process's share once more when the update flattens it.
    assert (one.gradients, two.gradients) == (8 * count, 4 * count + 4 * (count // 2))
    # A process alone has its weights for masters, and moments; among two, half of masters and moments.
    assert (one.optimizer, two.optimizer) == (8 * count, 12 * (count // 2))
    assert one.total == one.weights + one.gradients + one.optimizer + one.activations + one.logits
    assert (one.save, two.save) == (12 * count, 12 * (count // 2))


def test_the_text_has_the_process_itself_on_a_line_of_its_own():
    sizes = Sizes(48, 20, VOCABULARY)
    experiment, spec, plan, (memory,) = planned("demo", SMALL, sizes)
    text = plan_text(experiment, spec, plan, sizes)
    table = text[text.index("stage  ") :].splitlines()
    assert table[0].split()[3:9] == ["weights", "gradients", "optimizer", "activations", "logits", "total"]
    assert f"{memory.total / 2**30:.3f}" in table[1].split()
    (line,) = [line for line in table if line.startswith("main memory")]
    assert f"{PROCESS_BYTES / 2**30:.2f} GiB" in line
    assert f"{8 * 68:,} tokens" in text
