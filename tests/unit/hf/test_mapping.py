"""Name maps: transforms are reversible, and an incomplete map is an error."""

from __future__ import annotations

import pytest
import torch

from pretrain.blocks.positions import sinusoids
from pretrain.errors import CheckpointError
from pretrain.hf.completers.blanks import split_at_sentinels
from pretrain.hf.mapping import check_map, converted
from pretrain.hf.transforms import Copy, Entry, Fold, Rows, SinusoidRows, Transpose, counting


@pytest.mark.parametrize(
    ("transform", "shape"), [(Copy(), (5, 3)), (Fold(3.7), (5, 3)), (Rows(2), (9, 3)), (Transpose(), (3, 5))]
)
def test_undo_undoes(transform, shape: tuple[int, int]):
    source = torch.randn(5, 3, dtype=torch.float64)
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


def test_several_of_ours_are_one_of_theirs():
    """A fused projection: columns of the host's matrix are rows of ours, first source first."""
    ours = {name: torch.randn(4, 3, dtype=torch.float64) for name in "qkv"}
    entry = Entry("fused", ("q", "k", "v"), Transpose())
    fused = entry.apply(ours.__getitem__, (3, 12))
    assert torch.equal(fused[:, 4:8], ours["k"].T)
    back = entry.undo(fused, [(4, 3)] * 3)
    assert list(back) == ["q", "k", "v"]
    assert all(torch.equal(back[name], ours[name]) for name in ours)


def test_what_stands_where_we_have_no_parameter():
    nothing = Entry("x", None)
    assert nothing.sources == ()
    assert not nothing.apply(ours_is_not_read, (2, 3)).any()
    assert Entry("x", None, constant=counting).apply(ours_is_not_read, (1, 4)).tolist() == [[0, 1, 2, 3]]
    table = Entry("x", None, constant=SinusoidRows(2)).apply(ours_is_not_read, (7, 4))
    assert not table[:2].any()
    assert torch.equal(table[2:], sinusoids(5, 4))


def ours_is_not_read(name: str) -> torch.Tensor:
    raise AssertionError(name)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([Entry("x", "a")], "b has no place"),
        ([Entry("x", "a"), Entry("y", "b"), Entry("z", "a")], "a of the trained model is mapped twice"),
        ([Entry("x", "a"), Entry("y", "b")], "z of the Hugging Face model would stay unset"),
        ([Entry("x", "a"), Entry("y", "b"), Entry("z", None), Entry("q", None)], "q is mapped and is not in the Hugg"),
        ([Entry("x", "a"), Entry("y", "b"), Entry("z", "c")], "c is mapped and is not in the trained model"),
        ([Entry("x", "a"), Entry("y", "b"), Entry("z", None), Entry("z", None)], "z of the Hugging Face model is set"),
        ([Entry("x", ("a", "b")), Entry("y", "b"), Entry("z", None)], "b of the trained model is mapped twice"),
        ([Entry("x", ("a", "c")), Entry("y", "b"), Entry("z", None)], "c is mapped and is not in the trained model"),
    ],
)
def test_an_incomplete_map_is_an_error(entries: list[Entry], message: str):
    with pytest.raises(CheckpointError, match=message):
        check_map(entries, ["a", "b"], ["x", "y", "z"])


def test_a_complete_map_passes():
    check_map([Entry("x", "a"), Entry("y", "b"), Entry("z", "a", duplicate=True)], ["a", "b"], ["x", "y", "z"])
    check_map([Entry("x", ("a", "b")), Entry("z", None)], ["a", "b"], ["x", "z"])


def test_a_shape_that_does_not_fit_is_an_error():
    with pytest.raises(CheckpointError, match="a becomes shape"):
        converted(Entry("x", "a"), lambda name: torch.ones(2), (3,))


def test_output_is_split_at_sentinels():
    spans = split_at_sentinels([2, 10, 5, 6, 11, 7, 10, 8, 3, 0], sentinels=[10, 11], special={0, 2, 3, 10, 11})
    assert spans == {10: [5, 6], 11: [7]}
