"""Bytes of weights and state by ZeRO stage, and activations by checkpointing, against what is counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pretrain.analysis.plan_memory import Layout, StageContent, memory, state_bytes
from pretrain.analysis.plan_model import Sizes
from pretrain.config.load import load_experiment

COUNT, BUCKET = 4_000_000, 1_000_000
ALONE = Layout(1, 1, 1, False, micro_batch=2, micro_batches=4, checkpoint_every=0)
FOUR = replace(ALONE, data_parallel=4)
M = 1_000_000
EXPECTED = {
    # precision, ZeRO stage, offload: weights, gradients, optimizer, host; millions of bytes for 4 M parameters on 4
    # processes with buckets of 1 M.
    ("fp32", 0, False): (16, 16 + 4, 32, 0),  # gradients and a bucket; two moments, whole
    ("fp32", 1, False): (16, 16 + 4, 12, 0),  # gradients, and a quarter flattened; a quarter of masters and moments
    ("fp32", 2, False): (16, 4 + 4 + 4, 12, 0),  # a bucket, a quarter kept, a quarter flattened
    ("fp32", 3, False): (4 + 8, 4 + 4 + 4, 12, 0),  # a quarter of the weights, and two buckets gathered
    ("fp32", 1, True): (16, 16, 0, 12 + 8),
    ("bf16", 1, False): (8, 8 + 16 + 4, 12, 0),  # bf16 gradients, whole fp32 ones, a bucket in fp32
    ("bf16", 2, False): (8, 2 + 4 + 4, 12, 0),
    ("bf16", 3, False): (2 + 4, 2 + 4 + 4, 12, 0),
    ("bf16", 2, True): (8, 2, 0, 12 + 8),
}


@pytest.mark.parametrize(("case", "millions"), EXPECTED.items())
def test_bytes_of_each_zero_stage(case, millions):
    precision, zero, offload = case
    state = state_bytes(COUNT, replace(FOUR, zero_stage=zero, offload=offload), precision, BUCKET)
    assert tuple(state) == tuple(M * value for value in millions)


@pytest.mark.parametrize(
    ("precision", "millions"),
    [("fp32", (16, 16 + 16, 32, 0)), ("bf16", (8, 8 + 16, 48, 0))],  # no masters in fp32; no bucket in bf16
)
def test_one_process_alone_has_nothing_to_reduce(precision, millions):
    assert tuple(state_bytes(COUNT, ALONE, precision, BUCKET)) == tuple(M * value for value in millions)


def test_zero_3_gathers_a_bounded_part():
    state = state_bytes(4 * COUNT, replace(FOUR, zero_stage=3), "bf16", BUCKET)
    assert state.weights == 2 * (COUNT + 2 * BUCKET)  # a quarter of its own; one block and those fetched ahead


class TestActivations:
    experiment = load_experiment("demo", ["model.hidden_size=64", "model.ffn_size=128", "model.num_heads=2"])
    sizes = Sizes(48, 20, 500)
    content = StageContent(0, COUNT, encoder_layers=8, decoder_layers=8, has_head=False)

    def kept(self, content: StageContent | None = None, **changes):
        return memory(self.experiment, content or self.content, replace(ALONE, **changes), self.sizes).activations

    def test_every_k_layers(self):
        """Between segments every k-th layer's hidden states, and the encoder's output once; within one all it keeps."""
        encoder = self.kept(replace(self.content, encoder_layers=1, decoder_layers=0))
        rows = 4 * ALONE.micro_batch * 64
        between = {k: rows * (8 * 48 + 8 * 20) / k + rows * 48 for k in (1, 2, 4)}
        assert {k: self.kept(checkpoint_every=k) for k in (1, 2, 4)} == {k: between[k] + k * encoder for k in between}
        assert self.kept(checkpoint_every=2) < self.kept() / 3

    def test_micro_batches_in_flight(self):
        """1F1B: stage s of p has p - s of them, and never more than there are."""
        alone = self.kept()
        first = replace(self.content, stage=0)
        assert self.kept(first, stages=3) == 3 * alone
        assert self.kept(replace(first, stage=2), stages=3) == alone
        assert self.kept(first, stages=8) == 4 * alone
