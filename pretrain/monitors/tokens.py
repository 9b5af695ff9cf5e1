"""Which positions of the probe hold tokens, by what the batches say of themselves."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pretrain.blocks.masks import document_positions
from pretrain.monitors.probe import Probe
from pretrain.objectives.cross_entropy import IGNORE_INDEX
from pretrain.parallel.engine import Batch


def real_tokens(batch: Batch, stack: str) -> Tensor:
    """What a stack ("encoder", "decoder") reads, all but padding: bool [B, T]."""
    if stack == "encoder" or "decoder_input_ids" not in batch:
        return batch["attention_mask"] != 0
    if "decoder_attention_mask" in batch:
        return batch["decoder_attention_mask"] != 0
    return batch["labels"] != IGNORE_INDEX  # no mask travels with a single target: each of its tokens has a label


def content_tokens(batch: Batch, stack: str) -> Tensor:
    """The same without CLS, which is the first token of each document where an encoder stands alone: bool [B, T]."""
    real = real_tokens(batch, stack)
    if stack == "encoder" and "decoder_input_ids" not in batch:
        real &= document_positions(batch["attention_mask"]) > 0
    return real


def of_probe(probe: Probe, tokens: Callable[[Batch, str], Tensor], stack: str) -> list[Tensor]:
    """For each of this rank's micro-batches the rows that are samples, bool [n, T]; n is 0 where all is filler."""
    return [tokens(batch, stack)[: len(rows)] for batch, rows in zip(probe.batches, probe.rows, strict=True)]
