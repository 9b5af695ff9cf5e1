"""Reads the pairs of a translation sample back from its arrays, and checks what every such sample must hold."""

import numpy as np
from tokens_by_hand import BOS, EOS, PAD


def pairs_of(sample):
    """[(source ids, target ids)] without marks, in order; fails where arrays, masks and marks disagree."""
    source, numbers = sample["input_ids"], sample["attention_mask"]
    labels, shifted = sample["labels"], sample["decoder_input_ids"]
    behind = sample.get("decoder_attention_mask", (labels != -100).astype(np.int64))
    assert {array.dtype for array in sample.values()} == {np.dtype(np.int64)}
    for mask in (numbers, behind):
        assert_numbered(mask, numbers.max())
    assert (source[numbers == 0] == PAD).all()
    assert (shifted[behind == 0] == PAD).all()
    assert ((labels == -100) == (behind == 0)).all()
    pairs = []
    for number in range(1, numbers.max() + 1):
        ids, wanted, given = source[numbers == number], labels[behind == number], shifted[behind == number]
        assert ids[-1] == wanted[-1] == EOS
        assert given.tolist() == [BOS, *wanted[:-1]]
        pairs.append((ids[:-1].tolist(), wanted[:-1].tolist()))
    return pairs


def assert_numbered(mask, last):
    """1, 1, ..., 2, ..., last, then zeros: one run each."""
    runs = mask[np.flatnonzero(np.diff(mask, prepend=-1))].tolist()
    assert runs in ([*range(1, last + 1)], [*range(1, last + 1), 0])
