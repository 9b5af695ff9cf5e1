"""The signals of the activations in every design and family: their rows, and on what tokens they are measured."""

from __future__ import annotations

from types import SimpleNamespace

import activations_by_hand as by_hand
import pytest
import targets_families as families
import torch

from pretrain.models.layer_list import LayerList
from pretrain.monitors.attention import AttentionLogits
from pretrain.monitors.depth import gather
from pretrain.monitors.effective_rank import EffectiveRank
from pretrain.monitors.norm_gradients import NormGradients
from pretrain.monitors.norm_inputs import NormInputs
from pretrain.monitors.over_smoothing import OverSmoothing
from pretrain.objectives.cross_entropy import TokenLoss

torch.set_num_threads(1)
CASES = {name: (model, segmented) for name, model, segmented in families.cases()}
DEPTH = {"encoder": 4, "decoder": 4, "encoder_decoder": 2}
SAMPLES = 3
"""Of the probe, in two micro-batches of two: the last row is filler."""


class Case:
    """A model and its data."""

    def __init__(self, name):
        self.model, self.segmented = CASES[name]
        self.family = self.model["family"]
        self.config = families.experiment({**self.model, "dropout": 0.0}, 1)
        self.spec = families.spec_of(self.config, self.segmented)
        self.layers = LayerList(self.spec, seed=5)
        with torch.no_grad():  # off the special values that designs start at
            for parameter, source in zip(self.layers.parameters(), range(10_000), strict=False):
                generator = torch.Generator().manual_seed(source)
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        self.batch = families.global_batch(0, self.segmented, self.segmented and self.family == "decoder")
        self.engine = SimpleNamespace(layers=self.layers, backward_scale=4.0, optimizer_step_count=lambda: 0)

    def micro_batches(self):
        return [{key: value[first : first + 2] for key, value in self.batch.items()} for first in (0, 2)]

    def inputs(self, batch):
        """Of a family that has no target, the same without one."""
        return {key: value for key, value in batch.items() if self.family == "encoder_decoder" or "decoder" not in key}

    def sample(self, chosen):
        """Profiles over one training step (forward and backward) and the probe."""
        for signal in chosen:
            signal.before_step(self.engine)
        batch = self.inputs(self.batch)
        (logits,) = self.layers.train()(self.spec.state(batch))
        (4.0 * TokenLoss().sum(logits, batch["labels"])).backward()
        batches = [self.inputs(batch) for batch in self.micro_batches()]
        probe = SimpleNamespace(batches=batches, rows=[range(2), range(2, SAMPLES)])
        for signal in chosen:
            signal.before_probe(self.engine, probe)
        self.layers.eval()
        with torch.no_grad():
            for batch in batches:
                self.layers(self.spec.state(batch))
        return gather(chosen, [signal.collect(self.engine) for signal in chosen])

    def content(self, batch):
        """{stack: the tokens whose outputs count}: an encoder alone has CLS at the start of each document."""
        content = by_hand.tokens(batch)
        if self.family == "encoder":
            for row, documents in zip(content["encoder"], batch["attention_mask"].tolist(), strict=True):
                for i, document in enumerate(documents):
                    row[i] &= i > 0 and document == documents[i - 1]
        return content


@pytest.mark.parametrize("name", CASES)
def test_rows(name):
    case = Case(name)
    kinds = NormInputs, NormGradients, AttentionLogits, OverSmoothing
    found = case.sample([kind(case.spec) for kind in kinds])
    depth = DEPTH[case.family]
    stacks = [stack for stack in ("encoder", "decoder") if stack in case.family]
    attentions = [f"{stack}.self_attention" for stack in stacks]
    if case.family == "encoder_decoder":
        attentions.append("decoder.cross_attention")
    expected = dict.fromkeys(by_hand.ATTENTION, dict.fromkeys(attentions, depth))
    expected |= dict.fromkeys(by_hand.OUTPUTS[:2], dict.fromkeys(stacks, depth))
    norms = dict.fromkeys(found["norm_input_rms"], depth)
    assert bool(norms) == (case.model["block"]["kind"] != "rezero")
    expected |= dict.fromkeys(("norm_input_rms", "norm_input_growth", "norm_input_gradient"), norms)
    assert {
        figure: {group: len(rows) for group, rows in groups.items()} for figure, groups in found.items()
    } == expected
    for figure in by_hand.ATTENTION:
        assert all(len(heads) == 2 for rows in found[figure].values() for heads in rows)
    for figure in ("norm_input_rms", "norm_input_gradient", "token_cosine", "high_frequency_ratio"):
        for values in found[figure].values():
            assert 0.0 not in values, figure
            assert len(set(values)) == depth, figure  # each layer its own
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in case.layers.modules())


@pytest.mark.parametrize(
    "name",
    ["decoder/pre_ln", "encoder/pre_ln", "encoder/parallel", "decoder/sas", *(n for n in CASES if "documents" in n)],
)
def test_the_probe_by_hand(name):
    """Masks, padding, CLS and filler of each family, documents and prefixes too."""
    case = Case(name)
    found = case.sample([AttentionLogits(case.spec), OverSmoothing(case.spec), EffectiveRank(case.spec)])
    batch = case.inputs({key: value[:SAMPLES] for key, value in case.batch.items()})
    watched = by_hand.Watched(case.layers.double(), case.spec.state(batch))
    for figure, groups in watched.profiles(batch, case.content(batch), case.segmented).items():
        for group, rows in groups.items():
            for value, row in zip(found[figure][group], rows, strict=True):
                assert value == pytest.approx(row, rel=1e-4, abs=1e-5), (figure, group)  # fp32 through four layers


def test_a_stream_scaled_tenfold_moves_its_layers_norms_alone():
    """alpha x + G(x) times ten: LN takes the factor out, and hands back a tenth of the gradient."""
    case = Case("decoder/post_ln")
    chosen = [NormInputs(case.spec), NormGradients(case.spec)]
    still = case.sample(chosen)
    block = dict(case.layers.built_layers())["decoder.layers.2"]
    for name in ("self_attention", "ffn"):
        getattr(block, f"{name}_norm").register_forward_pre_hook(lambda norm, inputs: 10 * inputs[0], prepend=True)
    scaled = case.sample(chosen)
    for figure, factor in (("norm_input_rms", 10.0), ("norm_input_growth", 10.0), ("norm_input_gradient", 0.1)):
        for group, rows in scaled[figure].items():
            for layer, value in enumerate(rows):
                expected = still[figure][group][layer] * (factor if layer == 2 else 1.0)
                assert value == pytest.approx(expected, rel=1e-3), (figure, group, layer)  # but for the norm's eps


def test_queries_scaled_tenfold_move_their_layers_logits_alone():
    """Values of zero keep what the attention says from the layers above."""
    case = Case("decoder/pre_ln")
    block = dict(case.layers.built_layers())["decoder.layers.1"]
    signal = AttentionLogits(case.spec)
    scale(block.self_attention.v_proj, 0.0)
    still = case.sample([signal])["attention_logit_max"]["decoder.self_attention"]
    scale(block.self_attention.q_proj, 10.0)
    scaled = case.sample([signal])["attention_logit_max"]["decoder.self_attention"]
    for layer, (before, after) in enumerate(zip(still, scaled, strict=True)):
        assert after == pytest.approx([value * (10 if layer == 1 else 1) for value in before], rel=1e-5)


@torch.no_grad()
def scale(module, factor):
    for parameter in module.parameters():
        parameter *= factor
