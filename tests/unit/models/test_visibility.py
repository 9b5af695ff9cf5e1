"""Who may see whom, by perturbation: changing a token changes exactly the outputs that may see it, in every design."""

from __future__ import annotations

import pytest
import targets_equations as equations
import torch
from targets_models import (
    PREFIXES,
    SOURCE_DOCUMENTS,
    TARGET_DOCUMENTS,
    VOCABULARY,
    batch,
    logits,
    section,
    whole,
)

import pretrain.blocks  # noqa: F401
from pretrain.blocks.registry import BLOCKS

torch.set_num_threads(1)
SEEN = 1e-9  # a change that is seen is about 1 in logits of size one, through two layers at least 1e-6 in fp64
CASES = [(family, kind) for kind in BLOCKS.kinds() for family in sorted(BLOCKS[kind].families)]


def of_family(wanted):
    return [kind for family, kind in CASES if family == wanted]


def with_oneself(visible):
    """A position's own stream reaches its output, whether or not attention sees it."""
    return visible | torch.eye(visible.shape[-1], dtype=torch.bool)


def then(first, second):
    """Who sees whom through two layers: second over first."""
    return (second.double() @ first.double()) > 0


def changed(model, config, data, segmented, key, position):
    """bool [B, T]: which outputs differ when every sample's token at `position` of input `key` is another one."""
    ids = data[key].clone()
    ids[:, position] = (ids[:, position] + 7) % VOCABULARY
    before, after = (logits(model, config, d, segmented) for d in (data, {**data, key: ids}))
    difference = (after - before).abs().amax(-1)
    unseen = difference == 0  # not only small: what is not seen leaves no trace at all
    assert (unseen | (difference > SEEN)).all(), difference
    return ~unseen


def check(config, data, segmented, reach):
    """reach: {input: bool [B, T, S], who sees it in the end}."""
    model = whole(config, segmented)
    with torch.no_grad():
        for key, expected in reach.items():
            for position in range(expected.shape[-1]):
                found = changed(model, config, data, segmented, key, position)
                assert torch.equal(found, expected[:, :, position]), (key, position)
        # A sample never sees another one.
        ids = data["input_ids"].clone()
        ids[0] = (ids[0] + 3) % VOCABULARY
        before, after = (logits(model, config, d, segmented) for d in (data, {**data, "input_ids": ids}))
        assert torch.equal(after[1:], before[1:])
        assert not torch.equal(after[0], before[0])


def two_layers(queries, keys, causal):
    visible = with_oneself(equations.who_sees_whom(queries, keys, causal))
    return then(visible, visible)


def ones(mask):
    return torch.ones_like(mask)


@pytest.mark.parametrize("kind", of_family("decoder"))
class TestDecoder:
    def test_causality_and_padding(self, kind):
        """Padding lies behind the text: the text cannot see it, whatever the mask says."""
        data = batch("decoder")
        mask = data["attention_mask"]
        reach = two_layers(ones(mask), ones(mask), causal=True)
        assert not (reach & (mask == 0)[:, None, :] & (mask != 0)[:, :, None]).any()
        check(section("decoder", kind), data, False, {"input_ids": reach})

    @pytest.mark.parametrize("masks", [TARGET_DOCUMENTS, PREFIXES], ids=["documents", "prefixes"])
    def test_segments(self, kind, masks):
        data, mask = batch("decoder", masks), torch.tensor(masks)
        reach = two_layers(mask, mask, causal=True)
        text = (mask[:, :, None] != 0) & (mask[:, None, :].abs() != mask[:, :, None].abs())
        assert not (reach & text).any(), "no document sees another one"
        check(section("decoder", kind), data, True, {"input_ids": reach})


@pytest.mark.parametrize("kind", of_family("encoder"))
class TestEncoder:
    def test_padding(self, kind):
        data = batch("encoder")
        mask = data["attention_mask"]
        check(section("encoder", kind), data, False, {"input_ids": two_layers(ones(mask), mask, causal=False)})

    def test_documents(self, kind):
        data, mask = batch("encoder", SOURCE_DOCUMENTS), torch.tensor(SOURCE_DOCUMENTS)
        check(section("encoder", kind), data, True, {"input_ids": two_layers(mask, mask, causal=False)})


@pytest.mark.parametrize("kind", of_family("encoder_decoder"))
class TestEncoderDecoder:
    def test_causality_and_padding(self, kind):
        data = batch("encoder_decoder")
        source, target = data["attention_mask"], ones(data["decoder_input_ids"])
        encoder = two_layers(ones(source), source, causal=False)
        cross = equations.who_sees_whom(target, source, causal=False)
        decoder = two_layers(target, target, causal=True)
        reach = {"input_ids": then(then(encoder, cross), decoder), "decoder_input_ids": decoder}
        assert (reach["input_ids"] == (source != 0)[:, None, :]).all(), "every text token of the source, no padding"
        check(section("encoder_decoder", kind), data, False, reach)

    def test_documents(self, kind):
        data = batch("encoder_decoder", SOURCE_DOCUMENTS)
        source, target = torch.tensor(SOURCE_DOCUMENTS), torch.tensor(TARGET_DOCUMENTS)
        encoder = two_layers(source, source, causal=False)
        cross = equations.who_sees_whom(target, source, causal=False)
        decoder = two_layers(target, target, causal=True)
        reach = {"input_ids": then(then(encoder, cross), decoder), "decoder_input_ids": decoder}
        other = (target[:, :, None] != 0) & (source[:, None, :] != target[:, :, None])
        assert not (reach["input_ids"] & other).any(), "a target sees its own document's source alone"
        check(section("encoder_decoder", kind), data, True, reach)


@pytest.mark.parametrize("family", ["decoder", "encoder"])
def test_rotary_positions_see_no_further(family):
    masks = TARGET_DOCUMENTS if family == "decoder" else SOURCE_DOCUMENTS
    mask = torch.tensor(masks)
    reach = two_layers(mask, mask, causal=family == "decoder")
    config = section(family, "pre_ln", positions="rotary", qk_norm=True)
    check(config, batch(family, masks), True, {"input_ids": reach})


def test_every_kind_has_a_family():
    assert {kind for _, kind in CASES} == set(BLOCKS.kinds())
