"""What an objective must know of a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from pretrain.errors import ConfigError
from pretrain.objectives.pieces import Pieces

MASK_COMMAND = "python tools/prepare_data.py tokenizer --mask -o FILE.model"


def _nothing() -> Sequence[bytes]:
    return ()


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the pieces that stand for no text, and what the others spell.

    `bos` starts the decoder (it is the exported model's `decoder_start_token_id`), `eos` ends a document, a source
    and a target, `sentinels` mark the places of removed spans, first to last, `mask` (None where there is none) is
    what text is replaced by. `spelling` gives for each id the bytes of its text, b"" for special pieces; it is called
    once, when the first objective asks for `pieces`.
    """

    pad: int
    unk: int
    bos: int
    eos: int
    sentinels: tuple[int, ...]
    mask: int | None = None
    spelling: Callable[[], Sequence[bytes]] = field(default=_nothing, repr=False, compare=False)

    @cached_property
    def pieces(self) -> Pieces:
        """Which pieces are text, begin words, end sentences."""
        return Pieces(self.spelling())

    def need_mask(self, kind: str) -> int:
        """The mask piece.

        Raises:
            ConfigError: there is none, which objective `kind` cannot do without.
        """
        if self.mask is None:
            raise ConfigError(
                f"data.tokenizer: it has no <mask> piece, which objective.kind={kind} needs; "
                f"train one that has (`{MASK_COMMAND}`), or set data.tokenizer=auto"
            )
        return self.mask
