"""Batches are the same in every layout, resume anywhere, and skip what they are told to."""

import pytest
import torch

from pretrain.data.loader import BatchLoader, merge_ranges, next_indices, validation_batches
from pretrain.data.prepare import prepare
from pretrain.errors import DataError

G = 12


def loader(data, micro=G, rank=0, size=1, **keys):
    return BatchLoader(data.train, 1234, G, micro, rank, size, **keys)


def joined(batches):
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def global_batches(data, steps, micro=G, size=1, state=None, **keys):
    """The global batch of each step, put together from the ranks."""
    loaders = [loader(data, micro, rank, size, **keys) for rank in range(size)]
    for one in loaders:
        if state is not None:
            one.load_state_dict(state)
    result = []
    for _ in range(steps):
        parts = [one.next() for one in loaders]
        assert {len(part) for part in parts} == {G // size // micro}
        result.append(joined([batch for part in parts for batch in part]))
    for one in loaders:
        one.close()
    return result


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("micro", "size"), [(6, 1), (1, 1), (6, 2), (3, 2), (4, 3), (2, 6), (1, 12)])
def test_every_layout_gives_the_same_global_batches(prepared, micro, size):
    assert_same(global_batches(prepared, 4, micro, size), global_batches(prepared, 4))


def test_shapes_and_types(prepared):
    (batch,) = loader(prepared).next()
    target = prepared.objective.target_length
    shapes = {name: tuple(tensor.shape) for name, tensor in batch.items()}
    assert shapes == {
        "input_ids": (G, 32),
        "attention_mask": (G, 32),
        "decoder_input_ids": (G, target),
        "labels": (G, target),
        "sample_key": (G,),
    }
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


@pytest.mark.parametrize("stop", [0, 1, 5])
@pytest.mark.parametrize("layout", [(G, 1), (2, 3)])
def test_it_goes_on_where_it_was_stopped_in_any_layout(prepared, stop, layout):
    whole = global_batches(prepared, 8)
    first = loader(prepared, micro=3, rank=1, size=4)
    for _ in range(stop):
        first.next()
    state = first.state_dict()
    assert state["samples_consumed"] == stop * G
    assert_same(global_batches(prepared, 8 - stop, *layout, state=state), whole[stop:])


def test_batches_go_on_over_the_end_of_an_epoch(prepared):
    per_epoch = len(prepared.train)
    state = {**loader(prepared).state_dict(), "samples_consumed": per_epoch - 5}
    (batch,) = global_batches(prepared, 1, state=state)
    for row in (0, 4, 5, 11):
        wanted = prepared.train[per_epoch - 5 + row]
        assert batch["input_ids"][row].tolist() == wanted["input_ids"].tolist()


def test_skipped_ranges_are_left_out_in_every_layout(prepared):
    ranges = [[3, 5], [12, 30], [29, 31]]
    keys = [prepared.train.key(i) for i in range(80)]
    wanted = [key for i, key in enumerate(keys) if not (3 <= i < 5 or 12 <= i < 31)]
    found = global_batches(prepared, 3, skip_ranges=ranges)
    assert torch.cat([batch["sample_key"] for batch in found]).tolist() == wanted[: 3 * G]
    assert_same(global_batches(prepared, 3, micro=2, size=2, skip_ranges=ranges), found)


def test_a_skipped_step_is_remembered_and_not_seen_again(prepared):
    one = loader(prepared)
    one.next()
    before = one.state_dict()
    one.next()
    bad = one.last_ranges
    assert bad == [(G, 2 * G)]
    one.skip(bad)
    third = joined(one.next())
    assert one.state_dict()["skip_ranges"] == [[G, 2 * G]]
    again = loader(prepared)  # rolled back to before the bad step
    again.load_state_dict(before)
    again.skip(bad)
    assert_same([joined(again.next())], [third])
    assert again.last_ranges == [(2 * G, 3 * G)]
    assert again.state_dict() == one.state_dict()


def test_skipping_holds_although_the_next_step_was_prepared(prepared):
    one = loader(prepared)
    one.next()
    one.skip([(G, G + 3)])
    assert joined(one.next())["sample_key"][0] == prepared.train.key(G + 3)


def test_ranges_skipped_by_hand_join_the_saved_ones(prepared):
    one = loader(prepared, skip_ranges=[(50, 60)])
    one.load_state_dict({**loader(prepared).state_dict(), "skip_ranges": [[10, 20]]})
    assert one.state_dict()["skip_ranges"] == [[10, 20], [50, 60]]


def test_other_data_is_refused_and_named(prepared, experiment):
    state = loader(prepared).state_dict()
    other = prepare(experiment(seed=1235, objective={"noise_density": 0.3}), quiet=True)
    one = BatchLoader(other.train, 1235, G, G)
    with pytest.raises(DataError) as error:
        one.load_state_dict(state)
    message = str(error.value)
    assert "seed: 1234 became 1235" in message
    assert "objective.noise_density: 0.15 became 0.3" in message
    assert "corpus" not in message
    assert "\n" not in message


def test_wrong_use_is_refused(prepared):
    with pytest.raises(ValueError, match="no multiple"):
        loader(prepared, micro=5)
    with pytest.raises(ValueError, match="seed"):
        BatchLoader(prepared.train, 1, G, G)
    with pytest.raises(DataError, match=r"data\.skip_ranges: \[5, 5\]"):
        loader(prepared, skip_ranges=[[5, 5]])


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 7, 12])
def test_validation_covers_each_sample_once_on_any_number_of_ranks(prepared, size, count):
    ranks = [validation_batches(prepared.validation, count, 4, rank, size) for rank in range(size)]
    assert len({len(batches) for batches in ranks}) == 1
    rows = joined([batch for batches in ranks for batch in batches])
    counted = (rows["labels"] != -100).any(dim=1)
    assert rows["sample_key"][counted].tolist() == [prepared.validation.key(i) for i in range(count)]
    assert (rows["attention_mask"].sum(dim=1) > 0).all()  # padded rows are real text, so attention is defined
    labels = torch.stack([torch.from_numpy(prepared.validation[i]["labels"]) for i in range(count)])
    assert torch.equal(rows["labels"][counted], labels)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_exchanged_sources_are_those_of_a_sample_far_away_on_any_number_of_ranks(prepared, size):
    count = 7
    ranks = [validation_batches(prepared.validation, count, 4, rank, size, True) for rank in range(size)]
    rows = joined([batch for batches in ranks for batch in batches])
    counted = (rows["labels"] != -100).any(dim=1)
    for index in range(count):
        own, other = prepared.validation[index], prepared.validation[(index + 3) % count]
        for name, array in own.items():
            expected = other[name] if name in ("input_ids", "attention_mask") else array
            assert rows[name][counted][index].tolist() == expected.tolist()


def test_validation_takes_no_more_than_there_is(prepared):
    count = len(prepared.validation)
    rows = joined(validation_batches(prepared.validation, 10**6, 64, 0, 1))
    assert (rows["labels"] != -100).any(dim=1).sum() == count


def test_next_indices_by_brute_force():
    ranges = merge_ranges([[0, 2], [5, 6], [6, 9], [20, 40]])
    assert ranges == [(0, 2), (5, 9), (20, 40)]
    allowed = [i for i in range(200) if not any(a <= i < b for a, b in ranges)]
    for position in range(45):
        for count in (1, 3, 12):
            assert next_indices(position, count, ranges) == [i for i in allowed if i >= position][:count]
