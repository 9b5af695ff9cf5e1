"""Arrays that several objectives build alike."""

from __future__ import annotations

import itertools

import numpy as np

from pretrain.objectives.tokens import SpecialTokens


def padded(values: np.ndarray, length: int, fill: int) -> np.ndarray:
    """int64 [length]: `values`, then `fill`.

    Raises:
        ValueError: more values than `length`; nothing is ever cut off.
    """
    if len(values) > length:
        raise ValueError(f"{len(values)} values do not fit {length} places")
    result = np.full(length, fill, dtype=np.int64)
    result[: len(values)] = values
    return result


def opened(text: np.ndarray, tokens: SpecialTokens, document_mask: bool) -> tuple[np.ndarray, np.ndarray]:
    """What stands before each token of the text: bos, then the text without its last token.

    Args:
        text: [n] int64, documents ended by eos.
        document_mask: the documents are told apart; each begins with bos, in the place of the eos before it.

    Returns:
        ids and document numbers (1, 2, ...; 1 throughout without document_mask), both int64 [max(n, 1)].
    """
    ids = np.concatenate([[tokens.bos], text[:-1]]).astype(np.int64)
    if not document_mask:
        return ids, np.ones_like(ids)
    begins = ids == tokens.eos
    ids[begins] = tokens.bos
    return ids, 1 + np.cumsum(begins)


def runs(values: np.ndarray) -> list[tuple[int, int]]:
    """Half-open ranges [a, b) of equal consecutive values, in order."""
    if len(values) == 0:
        return []
    cuts = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return list(itertools.pairwise(cuts))
