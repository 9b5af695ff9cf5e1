"""What stands in a run's folder: names and summary.json, for all who read or write it."""

import json

import pytest

from pretrain.errors import CheckpointError
from pretrain.state.run_files import SUMMARY, merge_summary, read_summary
from pretrain.training.run_folder import RunFolder


def test_summary_is_merged_and_has_no_word_for_what_is_not_finite(tmp_path):
    assert read_summary(tmp_path) == {}
    merge_summary(tmp_path, {"loss": 2.5, "validation_loss": float("inf"), "deep": [float("nan"), {"a": 1}]})
    merge_summary(tmp_path, {"loss": 2.25})
    assert read_summary(tmp_path) == {"loss": 2.25, "validation_loss": None, "deep": [None, {"a": 1}]}
    assert json.loads((tmp_path / SUMMARY).read_text()) == read_summary(tmp_path)


@pytest.mark.parametrize("content", ['{"half": ', "[1, 2]", "\0\0", b"\xff"])
def test_a_damaged_summary_is_named_and_the_trainer_writes_it_again(tmp_path, content):
    (tmp_path / SUMMARY).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=SUMMARY):
        merge_summary(tmp_path, {"export": 1})
    # At the end of a run, before its last checkpoint is saved, it must not end the session.
    RunFolder(tmp_path, writes=True).update_summary({"step": 3})
    assert read_summary(tmp_path) == {"step": 3}
