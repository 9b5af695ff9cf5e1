"""Each kind of damage to the newest checkpoint: it is named and set aside, and the older one loads."""

from __future__ import annotations

import shutil

import pytest
import torch
from checkpoints_by_hand import HandEngine, save, saver
from documented_commands import ROOT

from pretrain.checkpoint.restore import newest_good, start_anew
from pretrain.errors import CheckpointError
from pretrain.state.keep import Keep, prune
from pretrain.state.reader import has_checkpoint
from pretrain.training.run_folder import RunFolder

torch.set_num_threads(1)
RANK_FILE = "rank_00000.safetensors"
FILES = (RANK_FILE, "index.json", "training.json", "manifest.json", "config.yaml", "tokenizer.model")
OLDER, NEWER = "step_00000004", "step_00000008"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    saving = saver(folder)
    for step in (4, 8):
        save(saving, HandEngine(), step)
    return folder


@pytest.fixture
def checkpoints(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run" / "checkpoints")


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1
    path.write_bytes(content)


def loaded(checkpoints):
    """The step that loads, with the state that was saved there, and what is said of others."""
    found, problems = newest_good(checkpoints)
    engine = HandEngine()
    engine.set(found.step)
    assert engine.holds(found)
    return found.step, problems


def test_every_kind_of_file_is_damaged_here(whole):
    assert sorted(path.name for path in (whole / NEWER).iterdir()) == sorted(FILES)


FLIPS = [*((name, at) for name in FILES for at in (0.0, 0.5, 0.999)), (RANK_FILE, 0.02)]


@pytest.mark.parametrize(("name", "at"), FLIPS)
def test_a_flipped_bit(name, at, checkpoints):
    """0.02 of the rank's file lies in its header, the other places in its length and its data."""
    flip(checkpoints / NEWER / name, at)
    step, problems = loaded(checkpoints)
    assert step == 4
    assert len(problems) == 1
    assert name in problems[0]
    assert len(problems[0].splitlines()) == 1
    assert sorted(path.name for path in checkpoints.iterdir()) == [f"damaged_{NEWER}", "latest", OLDER]
    assert loaded(checkpoints) == (4, [])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("length", [0.0, 0.5, 0.999, None], ids=str)
def test_a_truncated_or_missing_file(name, length, checkpoints):
    path = checkpoints / NEWER / name
    content = path.read_bytes()
    if length is None:
        path.unlink()
    else:
        path.write_bytes(content[: int(length * len(content))])
    step, problems = loaded(checkpoints)
    assert (step, len(problems)) == (4, 1)
    assert name in problems[0]


@pytest.mark.parametrize("content", [None, b"", b"step_00000004\n", b"\xff\0", b"step_99999999\n"])
def test_latest_is_for_people_and_other_programs(content, checkpoints):
    """Folders are found by their names, so a wrong pointer cannot lead a run astray."""
    if content is None:
        (checkpoints / "latest").unlink()
    else:
        (checkpoints / "latest").write_bytes(content)
    assert loaded(checkpoints) == (8, [])


@pytest.mark.parametrize("kind", ["empty folder", "folder", "dangling link", "garbage"])
def test_a_damaged_latest_fails_no_save_and_hides_nothing(kind, checkpoints):
    latest = checkpoints / "latest"
    latest.unlink()
    if kind == "dangling link":
        latest.symlink_to("step_00000099")
    elif kind == "garbage":
        latest.write_bytes(b"\xff\0")
    else:
        latest.mkdir()
    if kind == "folder":
        (latest / "manifest.json").write_text("{}")
    assert loaded(checkpoints) == (8, [])
    save(saver(checkpoints), HandEngine(), 12)
    assert latest.read_text() == "step_00000012\n"
    assert loaded(checkpoints) == (12, [])


def test_a_latest_that_cannot_be_moved_is_an_alert(checkpoints, monkeypatch):
    told = []
    monkeypatch.setattr("pretrain.checkpoint.save.point_latest", lambda *args: (checkpoints / "latest").mkdir())
    save(saver(checkpoints, tell=told.append), HandEngine(), 12)
    assert "could not move `latest` (FileExistsError" in told[0].prune_problem
    assert loaded(checkpoints) == (12, [])


def test_a_folder_under_the_name_of_another_step(checkpoints):
    """It is not the newest; it is set aside, and does not stand for those that are kept."""
    shutil.copytree(checkpoints / OLDER, checkpoints / "step_00000099")
    assert prune(checkpoints, Keep(1)) == [checkpoints / OLDER]
    step, problems = loaded(checkpoints)
    assert step == 8
    assert "step_00000099: manifest.json is of step 4" in problems[0]
    assert (checkpoints / "damaged_step_00000099").is_dir()


def test_none_is_whole(checkpoints):
    for name in (OLDER, NEWER):
        flip(checkpoints / name / "training.json", 0.5)
    with pytest.raises(CheckpointError, match="no checkpoint is whole") as error:
        newest_good(checkpoints)
    assert OLDER in str(error.value)
    assert NEWER in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert sorted(path.name for path in checkpoints.iterdir()) == ["latest", OLDER, NEWER]


def test_what_counts_as_a_run_that_must_not_start_anew(tmp_path):
    """A step folder counts without its manifest too: it had one when it got its name."""
    folder = tmp_path / "checkpoints"
    assert not has_checkpoint(folder)
    (folder / ".saving_00000004").mkdir(parents=True)
    assert not has_checkpoint(folder)
    (folder / "damaged_step_00000004").mkdir()
    assert has_checkpoint(folder)
    with pytest.raises(CheckpointError, match="damaged_step_00000004: set aside"):
        newest_good(folder)
    (folder / "damaged_step_00000004").rmdir()
    (folder / "step_00000004").mkdir()
    assert has_checkpoint(folder)
    with pytest.raises(CheckpointError, match="step_00000004: not a checkpoint"):
        newest_good(folder)


class TestStartingAnew:
    def said(self, run, capsys):
        start_anew(RunFolder(run, writes=True))
        start_anew(RunFolder(run, writes=False))
        return capsys.readouterr().err.splitlines()

    def test_a_new_folder_says_nothing(self, tmp_path, capsys):
        assert self.said(tmp_path, capsys) == []

    @pytest.mark.parametrize("trace", ["metrics.jsonl", "checkpoints/.saving_00000004/rank_00000.safetensors"])
    def test_a_session_that_died_before_its_first_checkpoint_is_named(self, trace, tmp_path, capsys):
        (tmp_path / trace).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / trace).write_text('{"step": 1}\n')
        said = self.said(tmp_path, capsys)
        assert len(said) == 1
        assert said[0].startswith(f"{tmp_path}: ")
        assert "starts anew at step 0" in said[0]
        if trace == "metrics.jsonl":
            assert (tmp_path / trace).read_text() == ""


def test_the_documentation_knows_these_files():
    """It lists what a checkpoint consists of."""
    page = (ROOT / "docs" / "checkpoints.md").read_text()
    assert all(name in page for name in FILES)
