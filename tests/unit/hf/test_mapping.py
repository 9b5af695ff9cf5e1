"""Name maps: transforms are reversible, and an incomplete map is an error."""

from __future__ import annotations

import pytest
import torch

from pretrain.errors import CheckpointError
from pretrain.hf.completers.blanks import split_at_sentinels
from pretrain.hf.mapping import check_map, converted
from pretrain.hf.transforms import Copy, Entry, Fold, Rows


@pytest.mark.parametrize("transform", [Copy(), Fold(3.7), Rows(2)])
def test_undo_undoes(transform):
    source = torch.randn(5, 3, dtype=torch.float64)
    shape = (9, 3) if isinstance(transform, Rows) else (5, 3)
    target = transform.apply(source, shape)
    assert tuple(target.shape) == shape
    torch.testing.assert_close(transform.undo(target, (5, 3)), source, rtol=1e-15, atol=0)


def test_fold_divides_in_fp64():
    weight = torch.tensor([1.0])
    assert Fold(3.0).apply(weight, (1,)).item() == 1.0 / 3.0


def test_rows_are_placed_behind_the_offset():
    table = Rows(2).apply(torch.ones(3, 1), (7, 1)).flatten()
    assert table.tolist() == [0, 0, 1, 1, 1, 0, 0]
    assert Rows(2).rest(table[:, None], (3, 1)).flatten().tolist() == [0, 0]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([Entry("x", "a")], "b has no place"),
        ([Entry("x", "a"), Entry("y", "b"), Entry("z", "a")], "a of the trained model is mapped twice"),
        ([Entry("x", "a"), Entry("y", "b")], "z of the Hugging Face model would stay unset"),
        ([Entry("x", "a"), Entry("y", "b"), Entry("z", None), Entry("q", None)], "q is mapped and is not in the Hugg"),
        ([Entry("x", "a"), Entry("y", "b"), Entry("z", "c")], "c is mapped and is not in the trained model"),
        ([Entry("x", "a"), Entry("y", "b"), Entry("z", None), Entry("z", None)], "z of the Hugging Face model is set"),
    ],
)
def test_an_incomplete_map_is_an_error(entries: list[Entry], message: str):
    with pytest.raises(CheckpointError, match=message):
        check_map(entries, ["a", "b"], ["x", "y", "z"])


def test_a_complete_map_passes():
    check_map([Entry("x", "a"), Entry("y", "b"), Entry("z", "a", duplicate=True)], ["a", "b"], ["x", "y", "z"])


def test_a_shape_that_does_not_fit_is_an_error():
    with pytest.raises(CheckpointError, match="a becomes shape"):
        converted(Entry("x", "a"), lambda name: torch.ones(2), (3,))


def test_output_is_split_at_sentinels():
    spans = split_at_sentinels([2, 10, 5, 6, 11, 7, 10, 8, 3, 0], sentinels=[10, 11], special={0, 2, 3, 10, 11})
    assert spans == {10: [5, 6], 11: [7]}
