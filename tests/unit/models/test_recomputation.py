"""Every design under activation checkpointing, eager and compiled: the numbers do not change.

Compiled is the block, inside the checkpoint: a stack is then one graph, or two where its first layer differs.
"""

from __future__ import annotations

import pytest
import torch
from targets_blocks import stir
from targets_models import PREFIXES, SOURCE_DOCUMENTS, batch, logits, section, spec
from torch._dynamo.utils import counters

from pretrain.blocks.registry import BLOCKS
from pretrain.models.layer_list import LayerList

torch.set_num_threads(1)
CASES = [(kind, family) for kind in BLOCKS.kinds() for family in sorted(BLOCKS[kind].families)]
COMPILED = [(kind, family) for kind, family in CASES if family == "encoder_decoder" or len(BLOCKS[kind].families) == 2]
"""Where a design has an encoder-decoder, its two stacks stand for all; compiling takes a second each."""
TWO_GRAPHS = {"keel", "sas", "sas_p"}
"""Their first layer is another: without a second norm, or with values of its own."""


def model(config, segmented=False, every=0):
    return stir(LayerList(spec(config, segmented), seed=5, checkpoint_every=every).double(), 0.2)


def blocks(layers):
    return [module for name, module in layers.built_layers() if ".layers." in name]


def compiled(layers, backend):
    """The same model with compiled blocks; nothing compiled before counts."""
    torch.compiler.reset()
    counters.clear()
    for block in blocks(layers):
        block.compile(backend=backend, fullgraph=True)
    return layers


def graphs():
    """How many were compiled since; one that Dynamo gave up to begin anew is none."""
    return counters["stats"]["unique_graphs"]


def step(layers, config, data, segmented=False):
    """Logits, and the gradient of each parameter."""
    out = logits(layers, config, data, segmented)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    return out.detach(), {name: parameter.grad for name, parameter in layers.named_parameters()}


def differing(found, expected):
    """Names of what is not equal bit by bit."""
    (out, gradients), (wanted, wanted_gradients) = found, expected
    names = [name for name, gradient in wanted_gradients.items() if not torch.equal(gradients[name], gradient)]
    return names if torch.equal(out, wanted) else ["logits", *names]


@pytest.mark.parametrize(("kind", "family"), CASES)
@pytest.mark.parametrize("segmented", [False, True], ids=["plain", "documents"])
def test_recomputed(kind, family, segmented):
    config = section(family, kind, layers=3, dropout=0.3)
    masks = PREFIXES if family == "decoder" else SOURCE_DOCUMENTS
    data = batch(family, masks if segmented else None)
    expected = step(model(config, segmented), config, data, segmented)
    assert differing(step(model(config, segmented, every=1), config, data, segmented), expected) == []


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize(("kind", "family"), COMPILED)
def test_recomputed_and_compiled(kind, family):
    config, data = section(family, kind, layers=4, dropout=0.3), batch(family)
    expected = step(model(config), config, data)
    found = step(compiled(model(config, every=1), "aot_eager"), config, data)
    stacks = 2 if family == "encoder_decoder" else 1
    assert graphs() == (2 if kind in TWO_GRAPHS else stacks)
    different = differing(found, expected)
    if stacks == 2:
        # A compiled decoder layer hands the encoder the sum of its gradients through keys and values; eager autograd
        # adds each to what all layers gave so far: sums of eight numbers of size 1 in another order.
        torch.testing.assert_close(found[1], expected[1], rtol=1e-12, atol=1e-12)
        different = [name for name in different if not name.startswith(("encoder.", "token_embedding."))]
    assert different == []


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize("kind", BLOCKS.kinds())
def test_graphs_do_not_grow_with_depth(kind):
    config = section("decoder", kind, layers=12, dropout=0.3)
    layers = compiled(model(config), "eager")
    with torch.no_grad():
        logits(layers, config, batch("decoder"))
    assert graphs() == (2 if kind in TWO_GRAPHS else 1)


@pytest.mark.parametrize(("kind", "name"), [("keel", "alpha"), ("lns", "scale")])
def test_a_number_of_the_layers_own_is_as_exact_as_a_float(kind, name):
    """In bf16, to which 1 / sqrt(l) is not to be rounded first; and for exports, which read it on the meta device."""
    config = section("decoder", kind, layers=4)
    found, expected = (stir(LayerList(spec(config), seed=5), 0.2).bfloat16() for _ in range(2))
    for block in blocks(expected):
        setattr(block, name, float(getattr(block, name)))
    assert differing(step(found, config, batch("decoder")), step(expected, config, batch("decoder"))) == []
    with torch.device("meta"):
        skeleton = LayerList(spec(config))
    assert [float(getattr(block, name)) for block in blocks(skeleton)] == [getattr(b, name) for b in blocks(expected)]
