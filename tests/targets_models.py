"""Small whole models of every family with their inputs."""

from __future__ import annotations

import torch
from targets_blocks import stir

from pretrain.config.schema import ModelSection
from pretrain.models.layer_list import LayerList
from pretrain.models.registry import FAMILIES

VOCABULARY, SOURCE, TARGET, BATCH = 40, 9, 7, 3

# Three samples each: documents and padding; two documents that end with the sample; one document. In an
# encoder-decoder, source and target of a document bear one number.
SOURCE_DOCUMENTS = [[1, 1, 1, 2, 2, 3, 3, 0, 0], [1, 1, 1, 1, 2, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 0, 0, 0]]
TARGET_DOCUMENTS = [[1, 1, 2, 3, 3, 0, 0], [1, 2, 2, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 0]]
PREFIXES = [[-1, -1, 1, -2, 2, 2, 0], [-1, 1, 1, 1, 1, 1, 1], [-1, -1, -1, -1, 1, 0, 0]]


def section(family, kind, layers=2, **changes):
    depths = {f"{stack}_layers": layers for stack in ("encoder", "decoder") if stack in family}
    sizes = {"hidden_size": 12, "num_heads": 3, "ffn_size": 20}
    return ModelSection(**{"family": family, "block": {"kind": kind}, **depths, **sizes, **changes})


def spec(config, segmented=False):
    lengths = {"decoder": (0, TARGET), "encoder": (SOURCE, 0), "encoder_decoder": (SOURCE, TARGET)}
    return FAMILIES[config.family](config, VOCABULARY, *lengths[config.family], segmented=segmented)


def whole(config, segmented=False, stirred=True):
    """In fp64; stirred: with no parameter at its special starting value."""
    model = LayerList(spec(config, segmented), seed=5).double()
    return stir(model, 0.2) if stirred else model


def batch(family, masks=None):
    """masks: the first stack's attention mask, by default plain padding; an encoder-decoder's target has TARGET_..."""
    generator = torch.Generator().manual_seed(2)
    length = TARGET if family == "decoder" else SOURCE
    plain = (torch.arange(length) < torch.tensor([[length], [length - 3], [2]])).long()
    data = {
        "input_ids": torch.randint(4, VOCABULARY, (BATCH, length), generator=generator),
        "attention_mask": plain if masks is None else torch.tensor(masks),
        "sample_key": torch.arange(100, 100 + BATCH),
    }
    if family == "encoder_decoder":
        data["decoder_input_ids"] = torch.randint(4, VOCABULARY, (BATCH, TARGET), generator=generator)
        if masks is not None:
            data["decoder_attention_mask"] = torch.tensor(TARGET_DOCUMENTS)
    return data


def logits(model, config, data, segmented=False):
    (out,) = model(spec(config, segmented).state(data))
    return out
