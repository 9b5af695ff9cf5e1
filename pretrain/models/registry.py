"""Families by name. A new family is one new file and one line here."""

from __future__ import annotations

from collections.abc import Callable

from pretrain.models.decoder import decoder
from pretrain.models.encoder import encoder
from pretrain.models.encoder_decoder import encoder_decoder
from pretrain.models.layers import ModelSpec

FAMILIES: dict[str, Callable[..., ModelSpec]] = {
    "encoder_decoder": encoder_decoder,
    "decoder": decoder,
    "encoder": encoder,
}
