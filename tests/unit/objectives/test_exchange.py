"""Another sample's source: what changes, and that nothing else does."""

import numpy as np

from pretrain.objectives.exchange import with_source_of

PLAIN = ("input_ids", "attention_mask", "decoder_input_ids", "labels")


def plain(first):
    return {name: np.arange(4) + first + 10 * place for place, name in enumerate(PLAIN)}


def packed(source, numbers, targets):
    arrays = {"input_ids": source, "attention_mask": numbers, "decoder_attention_mask": targets}
    return {name: np.array(values) for name, values in arrays.items()} | {"labels": np.array(targets) * 7}


def lists(sample):
    return {name: values.tolist() for name, values in sample.items()}


def test_the_encoders_arrays_are_the_others():
    own, other = plain(100), plain(200)
    expected = {**own, "input_ids": other["input_ids"], "attention_mask": other["attention_mask"]}
    assert lists(with_source_of(own, other)) == lists(expected)
    assert lists(own) == lists(plain(100)), "the sample itself stays"


def test_packed_documents_change_places_within_the_sample():
    own = packed([11, 2, 12, 13, 2, 14, 2, 0], [1, 1, 2, 2, 2, 3, 3, 0], [1, 2, 2, 3, 3, 0])
    found = with_source_of(own, packed([21, 2], [1, 1], [1]))
    assert found["attention_mask"].tolist() == [2, 2, 3, 3, 3, 1, 1, 0], "target 1 reads the last source"
    for name in ("input_ids", "decoder_attention_mask", "labels"):
        assert found[name].tolist() == own[name].tolist()


def test_a_lone_packed_document_reads_the_first_source_of_the_other():
    own = packed([11, 2, 0, 0], [1, 1, 0, 0], [1, 1, 0])
    found = with_source_of(own, packed([21, 22, 2, 23], [1, 1, 1, 2], [1, 2, 2]))
    assert found["input_ids"].tolist() == [21, 22, 2, 23]
    assert found["attention_mask"].tolist() == [1, 1, 1, 0], "its second source is seen by nobody"
    assert found["labels"].tolist() == own["labels"].tolist()
