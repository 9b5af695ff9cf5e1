"""A sample that reads another sample's source: what a model that does not look at its source would not notice."""

from __future__ import annotations

import numpy as np

Sample = dict[str, np.ndarray]
SOURCE = ("input_ids", "attention_mask")


def with_source_of(sample: Sample, other: Sample) -> Sample:
    """`sample` with the encoder's arrays of `other`; its decoder input and labels stay.

    Where documents are packed, each target sees only the source of its own number. There the sources change places
    within the sample, and only a sample of a single document takes the first source of `other`.

    Args:
        sample: of an encoder-decoder objective: `input_ids` and `attention_mask` [S], `decoder_input_ids` and `labels`
            [T], and `decoder_attention_mask` [T] where documents are packed.
        other: another sample of the same objective.
    """
    if "decoder_attention_mask" not in sample:
        return sample | {name: other[name] for name in SOURCE}
    numbers = sample["attention_mask"]
    documents = int(numbers.max())
    if documents > 1:
        return sample | {"attention_mask": np.where(numbers > 0, numbers % documents + 1, 0)}
    first = (other["attention_mask"] == 1).astype(np.int64)
    return sample | {"input_ids": other["input_ids"], "attention_mask": first}
