"""Recommended layouts: that training takes them, that they fit, and that no other of the layouts is better."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pretrain
from pretrain.analysis.plan_layout import FILL, Planner
from pretrain.analysis.plan_memory import GIB, Layout
from pretrain.analysis.plan_model import Sizes
from pretrain.analysis.plan_speed import (
    SUBLAYER_SECONDS,
    measured_times,
    stacks,
    times_of_flops,
    times_of_seconds,
)
from pretrain.analysis.plan_table import remarks, table
from pretrain.analysis.plan_traffic import Links, Traffic, data_parallel_bytes, stage_border_bytes
from pretrain.config.checks import check
from pretrain.config.deepspeed import deepspeed_config
from pretrain.config.load import load_experiment
from pretrain.errors import ConfigError
from pretrain.models.layer_list import LayerList
from pretrain.models.registry import FAMILIES
from pretrain.parallel.build import StageRow

SIZES = Sizes(128, 29, 32768)
SMALL = ["model.encoder_layers=4", "model.decoder_layers=4", "model.hidden_size=64", "model.num_heads=2"]


def described(recipe, *overrides, sizes=SIZES):
    experiment = load_experiment(recipe, overrides)
    return experiment, FAMILIES[experiment.model.family](experiment.model, sizes.vocabulary, sizes.source, sizes.target)


@functools.cache
def thousand_layers():
    experiment, spec = described("deepnet_1000l")
    return Planner(experiment, spec, SIZES, times_of_flops(spec, None), Links())


@functools.cache
def options_of(gpus, gib):
    return thousand_layers().options(gpus, gib * GIB)


@pytest.mark.parametrize(("gpus", "gib"), [(8, 80), (64, 80), (1024, 80), (8, 24), (64, 8)])
class TestThousandLayers:
    def test_training_takes_what_is_recommended(self, gpus, gib):
        best = options_of(gpus, gib)[0]
        assert best.fits
        assert best.memory.total <= FILL * gib * GIB
        experiment = load_experiment("deepnet_1000l", best.overrides)
        batch = check(experiment, gpus, "cuda")  # the batch equation, stages <= layers, ZeRO-1 in a pipeline
        assert batch.micro_batches >= batch.pipeline_stages
        assert Layout.of(experiment, batch) == best.layout
        deepspeed_config(experiment, batch)

    def test_every_option_uses_all_gpus_and_the_whole_batch(self, gpus, gib):
        assert len({(o.layout.stages, o.layout.zero_stage, o.layout.offload) for o in options_of(gpus, gib)}) >= 8
        for option in options_of(gpus, gib):
            layout = option.layout
            assert layout.stages * layout.data_parallel == gpus
            assert layout.micro_batch * layout.micro_batches * layout.data_parallel == 4096
            assert layout.zero_stage == 1 or layout.stages == 1
            assert layout.micro_batches >= layout.stages

    def test_none_that_fits_is_faster_but_zero_3_and_the_host(self, gpus, gib):
        best, *others = options_of(gpus, gib)
        usual = [o for o in others if o.fits and o.layout.zero_stage < 3 and not o.layout.offload]
        if usual:
            assert best.ranked_seconds <= 1.005 * min(o.ranked_seconds for o in usual)
            assert best.layout.zero_stage < 3
            assert not best.layout.offload


def test_no_other_micro_batch_or_checkpointing_is_better():
    planner, memory = thousand_layers(), 80 * GIB
    for best in options_of(8, 80)[:3]:
        layout = best.layout
        tried = [
            planner._option(replace(layout, micro_batch=size, micro_batches=count, checkpoint_every=every), memory)
            for size, count in ((2**k, 4096 // layout.data_parallel // 2**k) for k in range(9))
            for every in (0, 1, 4, 8, 16)
            if count >= layout.stages
        ]
        fitting = [option for option in tried if option.fits]
        assert len(fitting) < len(tried), "some of them would be too large"
        assert best.ranked_seconds <= 1.005 * min(option.ranked_seconds for option in fitting)


def test_less_memory_takes_another_layout():
    """What is fastest with 80 GiB does not fit 24."""
    roomy, tight = (options_of(8, gib)[0] for gib in (80, 24))
    assert tight.memory.total < FILL * 24 * GIB < roomy.memory.total
    assert tight.ranked_seconds > roomy.ranked_seconds


def test_where_nothing_fits_the_least_comes_first_and_is_not_recommended():
    options = options_of(8, 1)
    assert not any(option.fits for option in options)
    assert options[0].memory.total == min(option.memory.total for option in options)
    planner = thousand_layers()
    assert planner.document(8, GIB, options)["recommended"] is None
    text = table(planner, 8, GIB, options)
    assert "nothing fits 8 GPUs of 1 GiB" in text
    assert "parallel." not in text


@pytest.mark.parametrize("gpus", [8, 64, 1024])
def test_the_table_is_readable(gpus):
    planner = thousand_layers()
    lines = table(planner, gpus, 80 * GIB, options_of(gpus, 80)).splitlines() + remarks(planner).splitlines()
    assert max(map(len, lines)) <= 100
    (chosen,) = [line.split() for line in lines if line.startswith("*")]
    best = options_of(gpus, 80)[0]
    assert chosen[1:4] == [str(best.layout.stages), "x", str(best.layout.data_parallel)]
    assert float(chosen[-4]) == pytest.approx(best.memory.total / GIB, rel=0.01)
    assert chosen[-1] == "unknown", "nothing was measured or stated"
    assert "assumed" in lines[-1] + lines[-2] + lines[-3]
    json.dumps(planner.document(gpus, 80 * GIB, options_of(gpus, 80)))


def test_the_page_shows_what_is_printed():
    page = (Path(pretrain.__file__).parents[1] / "docs" / "planning.md").read_text()
    planner = thousand_layers()
    for gpus in (8, 64, 1024):
        assert table(planner, gpus, 80 * GIB, options_of(gpus, 80)) in page
    assert remarks(planner) in page


def test_a_batch_that_no_division_shares():
    experiment, spec = described("demo", *SMALL, "batch.global_batch_size=12")
    planner = Planner(experiment, spec, SIZES, times_of_flops(spec, None), Links())
    with pytest.raises(ConfigError, match=r"batch\.global_batch_size = 12 .* 64 GPUs.* multiple of 64"):
        planner.options(64, GIB)


def test_too_few_samples_to_fill_a_pipeline_are_still_planned():
    """5 GPUs, 1 sample: the only way is a pipeline of 5 whose stages mostly wait."""
    experiment, spec = described("demo", *SMALL, "batch.global_batch_size=1", "batch.micro_batch_size=1")
    (option, *_) = Planner(experiment, spec, SIZES, times_of_flops(spec, None), Links()).options(5, 80 * GIB)
    assert (option.layout.stages, option.layout.micro_batches) == (5, 1)
    assert option.idle >= 0.8


class TestTime:
    """One decoder of 8 equal layers and a head that costs nothing, at one second a layer of 2 samples."""

    def planner(self, *overrides, seconds=1.0, links=Links()):  # noqa: B008 (frozen)
        sizes = Sizes(0, 32, 100)
        small = ["model.decoder_layers=8", "model.hidden_size=32", "model.num_heads=2", "model.ffn_size=64"]
        batch = ["batch.global_batch_size=64", "batch.micro_batch_size=2", "train.precision=fp32"]
        experiment, spec = described("gpt_base", *small, *batch, *overrides, sizes=sizes)
        layers = tuple(replace(layer, cost=0.0) if layer.name == "head" else layer for layer in spec.layers)
        spec = replace(spec, layers=layers)
        times = times_of_seconds(spec, {"decoder": seconds}, 2)
        return Planner(experiment, spec, sizes, times, links)

    def option(self, planner, **changes):
        layout = replace(Layout(1, 2, 1, False, 2, 16, 0), **changes)
        return planner._option(layout, 80 * GIB)

    def test_one_stage(self):
        planner = self.planner()
        option = self.option(planner)
        assert option.compute_seconds == pytest.approx(16 * 8)
        assert option.idle == pytest.approx(0)
        assert planner.tokens_per_second(option) == pytest.approx(64 * 32 / 128)
        assert self.option(planner, micro_batch=4, micro_batches=8).compute_seconds == pytest.approx(8 * 16)

    def test_bubble_and_recomputation(self):
        planner = self.planner()
        piped = self.option(planner, stages=4, micro_batches=16)
        assert piped.compute_seconds == pytest.approx((16 + 3) * 2)
        assert piped.idle == pytest.approx(3 / 19)
        again = self.option(planner, stages=4, micro_batches=16, checkpoint_every=1)
        assert again.compute_seconds == pytest.approx((16 + 3) * 2 * 4 / 3)
        assert again.idle == pytest.approx(3 / 19)

    def test_unequal_stages_wait_for_the_costliest(self):
        option = self.option(self.planner(), stages=3, micro_batches=16)
        assert option.compute_seconds == pytest.approx((16 + 2) * 3)
        assert option.idle == pytest.approx(1 - 16 * 8 / (3 * 18 * 3))

    def test_stated_links_count_and_assumed_ones_do_not(self):
        assumed, stated = (self.planner(links=Links(1e3, 1e3, stated=known)) for known in (False, True))
        without, with_links = self.option(assumed), self.option(stated)
        assert assumed.tokens_per_second(without) == pytest.approx(16)
        seconds = 128 + with_links.traffic.total / 1e3
        assert stated.tokens_per_second(with_links) == pytest.approx(64 * 32 / seconds)

    def test_a_sublayer_takes_at_least_its_host_time(self):
        option = self.option(self.planner(seconds=1e-9))
        assert option.compute_seconds == pytest.approx(16 * 8 * 2 * SUBLAYER_SECONDS)

    def test_the_host_s_share_of_a_step_is_no_figure(self):
        planner = self.planner()
        assert planner.tokens_per_second(self.option(planner, offload=True)) is None


def test_measured_times_are_of_each_stack():
    experiment, spec = described("demo", *SMALL, "batch.micro_batch_size=4")
    sizes = Sizes(16, 8, 100)
    times = measured_times(experiment, sizes, seconds=0.0)
    assert times.source == "measured"
    assert set(times.flops) == set(times.fixed) == set(stacks(spec)) == {"encoder", "decoder"}
    assert all(rate > 0 for rate in times.flops.values())
    assert all(fixed >= 0 for fixed in times.fixed.values())
    assert "measured" in times.words


class TestTraffic:
    layout = Layout(1, 4, 1, False, 2, 8, 0)

    @pytest.mark.parametrize(
        ("zero", "every", "sent"),
        [
            # Of 1000 bf16 weights on 4 processes, 750 are sent in each ring of a gather; gradients in fp32.
            (0, 0, 2 * 4 * 750),
            (1, 0, 2 * 4 * 750 + 2 * 750),
            (2, 0, 8 * 2 * 4 * 750 + 2 * 750),
            (3, 0, 8 * (4 * 750 + 2 * 2 * 750)),
            (3, 1, 8 * (4 * 750 + 2 * 2 * 750)),  # what a recomputation gathers stays
        ],
    )
    def test_gradients_and_weights(self, zero, every, sent):
        layout = replace(self.layout, zero_stage=zero, checkpoint_every=every)
        assert data_parallel_bytes(1000, layout, 2) == sent
        assert data_parallel_bytes(1000, replace(layout, data_parallel=1), 2) == 0

    @pytest.mark.parametrize(
        ("recipe", "depth", "sizes", "stop"),
        [
            ("demo", SMALL[:2], Sizes(12, 7, 50), 3),  # within the encoder
            ("demo", SMALL[:2], Sizes(12, 7, 50), 8),  # within the decoder
            ("gpt_base", ["model.decoder_layers=4"], Sizes(0, 7, 50), 3),
            ("bert_base", ["model.encoder_layers=4"], Sizes(12, 0, 50), 3),
        ],
    )
    def test_a_border_carries_what_the_layers_hand_on(self, recipe, depth, sizes, stop):
        experiment, spec = described(recipe, *depth, *SMALL[2:], "train.precision=fp32", sizes=sizes)
        lengths = {
            k: sizes.target if k.startswith("decoder") or not sizes.source else sizes.source for k in spec.inputs
        }
        rows = self.layout.micro_batch
        with torch.device("meta"):
            batch = {key: torch.ones(rows, lengths[key], dtype=torch.long) for key in spec.inputs}
            batch["sample_key"] = torch.ones(rows, dtype=torch.long)
            state = LayerList(spec, 0, stop)(spec.state(batch))
        forward = sum(tensor.nbytes for tensor in state)
        back = sum(tensor.nbytes for tensor in state if tensor.is_floating_point())
        row = StageRow(0, 0, stop, "", "", 0.0)
        layout = replace(self.layout, stages=2)
        assert stage_border_bytes(experiment, spec, row, layout, sizes, 4) == 8 * (forward + back)

    def test_links_inside_a_node(self):
        links, sent = Links(inside=100.0, outside=10.0), Traffic(data_parallel=1000.0, pipeline=500.0)
        assert links.seconds(sent, replace(self.layout, data_parallel=4, stages=2)) == 10 + 5
        assert links.seconds(sent, replace(self.layout, data_parallel=8, stages=2)) == 10 + 50
        assert links.seconds(sent, replace(self.layout, data_parallel=16, stages=2)) == 100 + 50


def test_a_stage_s_content_is_all_of_it():
    _, contents = thousand_layers()._table(8)
    assert sum(c.encoder_layers for c in contents) == sum(c.decoder_layers for c in contents) == 500
    assert [c.has_head for c in contents] == [False] * 7 + [True]
    # The token table lies where tokens are embedded, and with the head to which it is tied.
    copies = sum(c.parameters for c in contents) - (3_695_067_648 - 32768 * 512)
    assert copies % (32768 * 512) == 0
    assert copies // (32768 * 512) == 3
