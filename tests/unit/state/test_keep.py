"""Which checkpoints stay."""

from __future__ import annotations

import pytest

from pretrain.state.keep import Keep, prune, to_remove
from pretrain.state.reader import list_checkpoints, step_of


def checkpoints(folder, steps, without_manifest=()):
    for step in steps:
        (folder / f"step_{step:08d}").mkdir()
        if step not in without_manifest:
            (folder / f"step_{step:08d}" / "manifest.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("keep", "newest", "stay"),
    [
        (Keep(1), None, [120]),
        (Keep(3), None, [120, 110, 100]),
        (Keep(9), None, [120, 110, 100, 90, 50, 9]),
        (Keep(2, 50), None, [120, 110, 100, 50]),
        (Keep(1, 9), None, [120, 90, 9]),
        (Keep(1), 100, [120, 110, 100]),
        (Keep(2, 50), 90, [120, 110, 100, 90, 50]),
    ],
)
def test_the_rule(tmp_path, keep, newest, stay):
    folder = checkpoints(tmp_path, (9, 50, 90, 100, 110, 120))
    gone = [step_of(path) for path in to_remove(folder, keep, newest)]
    assert [step_of(path) for path in prune(folder, keep, newest)] == gone
    assert [step_of(path) for path in list_checkpoints(folder)] == stay
    assert sorted([*gone, *stay]) == [9, 50, 90, 100, 110, 120]


def test_incomplete_ones_do_not_count_and_older_ones_go(tmp_path):
    """Their removal was cut short, or their manifest is lost; the newest is left to be named as damaged."""
    folder = checkpoints(tmp_path, (10, 20, 30, 40, 50), without_manifest=(20, 40, 50))
    prune(folder, Keep(2))
    assert [step_of(path) for path in list_checkpoints(folder)] == [50, 40, 30, 10]
    prune(checkpoints(folder, (60,)), Keep(2))
    assert [step_of(path) for path in list_checkpoints(folder)] == [60, 30]


def test_nothing_complete_nothing_removed(tmp_path):
    assert prune(checkpoints(tmp_path, (1, 2), without_manifest=(1, 2)), Keep(1)) == []


def test_why():
    assert Keep(2, 4).why([8, 2, 4, 6]) == {8: "newest, last 2, every 4", 6: "last 2", 4: "every 4", 2: ""}


def test_a_removal_cut_short_leaves_no_checkpoint_behind(tmp_path, monkeypatch):
    """Files would be missing from what its manifest calls whole."""
    folder = checkpoints(tmp_path, (10, 20))

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            prune(folder, Keep(1))
    assert not (folder / "step_00000010" / "manifest.json").exists()
    prune(folder, Keep(1))
    assert [step_of(path) for path in list_checkpoints(folder)] == [20]
