"""A save in the background: what it holds, what the training thread waits for, and what a failure or an end leaves."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing as mp
import os
import re
import resource
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from checkpoints_by_hand import TRAINING, HandEngine, save, saver
from targets_faults import WRITE_POINTS, at_write_points

from pretrain.checkpoint import save as save_module
from pretrain.checkpoint.callback import Checkpoints
from pretrain.checkpoint.restore import newest_good
from pretrain.checkpoint.save import TEMPORARY
from pretrain.errors import SaveFailed
from pretrain.state import keep as keep_module
from pretrain.state import writer
from pretrain.state.keep import Keep
from pretrain.state.reader import Checkpoint, list_checkpoints, step_of
from pretrain.training.run_folder import RunFolder

CONTEXT = mp.get_context("fork")
torch.set_num_threads(1)


class Gate:
    """Holds the saving thread at a write point until it is opened."""

    def __init__(self, monkeypatch, point):
        self.point, self.reached, self.open = point, threading.Event(), threading.Event()
        for module in (save_module, writer, keep_module):
            monkeypatch.setattr(module, "reached", self.at)

    def at(self, point):
        if point == self.point and threading.current_thread() is not threading.main_thread():
            self.reached.set()
            assert self.open.wait(30)


class TestWhatIsSaved:
    def test_the_state_at_the_call_though_training_goes_on(self, tmp_path, monkeypatch):
        engine, then, gate = HandEngine(), HandEngine(), Gate(monkeypatch, "rank_file_begun")
        saving, training = saver(tmp_path), {"progress": {"step": 4}}
        engine.set(4)
        then.set(4)
        saving.begin(4, engine, training, time.perf_counter())
        assert gate.reached.wait(30)
        engine.set(5)
        training["progress"]["step"] = 5
        assert list_checkpoints(tmp_path) == []
        gate.open.set()
        saving.wait()
        checkpoint = Checkpoint(tmp_path / "step_00000004")
        assert then.holds(checkpoint)
        assert not engine.holds(checkpoint)
        assert checkpoint.training() == {"progress": {"step": 4}}
        assert (tmp_path / "latest").read_text() == "step_00000004\n"
        assert sorted(path.name for path in checkpoint.folder.iterdir()) == [
            *("config.yaml", "index.json", "manifest.json", "rank_00000.safetensors", "tokenizer.model"),
            "training.json",
        ]

    def test_buffers_and_places_are_used_again(self, tmp_path):
        engine, saving = HandEngine(), saver(tmp_path)
        for step in (1, 2, 3):
            assert engine.holds(save(saving, engine, step))
        places = [buffer.data_ptr() for name, buffer in saving._snapshot.buffers.items() if name != "rng_torch"]
        asked = engine.asked
        save(saving, engine, 4)
        assert [b.data_ptr() for name, b in saving._snapshot.buffers.items() if name != "rng_torch"] == places
        assert engine.asked == asked, "a save asks only once where the state lies"
        assert len(saving._snapshot._runs) == 6, "one copy a quantity and group, not one a parameter"

    @pytest.mark.parametrize("quantity", ["weight", "exp_avg", "exp_avg_sq"])
    def test_a_buffer_that_the_engine_replaced_is_noticed(self, quantity, tmp_path):
        engine, saving = HandEngine(), saver(tmp_path)
        save(saving, engine, 1)
        engine.flat[quantity, False] = torch.zeros_like(engine.flat[quantity, False])
        assert engine.holds(save(saving, engine, 2))

    def test_other_dtypes_become_fp32(self, tmp_path):
        engine, saving = HandEngine(), saver(tmp_path)
        engine.flat["exp_avg", True] = engine.flat["exp_avg", True].bfloat16()
        checkpoint = save(saving, engine, 1)
        found = checkpoint.read("layers.0.fc.weight", "exp_avg").view(-1)
        assert torch.equal(found, engine.flat["exp_avg", True][: found.numel()].float())


def run_child(target, *args):
    """Exit code of a forked process."""
    child = CONTEXT.Process(target=target, args=args)
    child.start()
    child.join(60)
    assert child.exitcode is not None, "it hangs"
    return child.exitcode


def save_and_die(folder, point):
    engine, saving, step = HandEngine(), saver(folder, Keep(1)), 4

    def reached(name):
        if name == point and step == 8:
            os.kill(os.getpid(), signal.SIGKILL)

    at_write_points(reached)
    save(saving, engine, 4)
    if point == "earlier_moved":
        save(saving, engine, 8)  # with Keep(1), then, it is the only one
    step = 8
    save(saving, engine, 8)


class TestKilled:
    def test_every_write_point_is_known(self):
        sources = "".join(path.read_text() for path in Path(writer.__file__).parents[1].rglob("*.py"))
        found = re.findall(r"\breached\(\"(\w+)\"\)", sources)
        assert sorted(found) == sorted([*WRITE_POINTS, "earlier_moved"])

    @pytest.mark.parametrize("point", [*WRITE_POINTS, "earlier_moved"])
    def test_the_newest_whole_one_is_loaded_and_the_next_save_clears_up(self, point, tmp_path):
        assert run_child(save_and_die, tmp_path, point) == -signal.SIGKILL
        writer.put_back(tmp_path)
        found, problems = newest_good(tmp_path)
        engine = HandEngine()
        engine.set(found.step)
        assert engine.holds(found)
        assert found.step == (8 if point in ("renamed", "latest_moved", "pruned", "earlier_moved") else 4)
        assert problems == []
        assert engine.holds(save(saver(tmp_path), engine, 12))
        assert not list(tmp_path.glob(f"{TEMPORARY}*"))


def test_a_save_that_begins_late_is_waited_for(tmp_path, monkeypatch):
    """The thread is preempted before its first line: nothing that `wait` does may take its work from it."""
    run = save_module._Running.run

    def late(thread):
        time.sleep(0.05)
        run(thread)

    monkeypatch.setattr(save_module._Running, "run", late)
    saving, engine = saver(tmp_path), HandEngine()
    saving.begin(4, engine, TRAINING, time.perf_counter())
    saving.wait()
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [4]


def test_an_unknown_failure_is_no_save(tmp_path, monkeypatch):
    def broken(*args):
        raise SystemExit

    monkeypatch.setattr(save_module, "prune", broken)
    saving = saver(tmp_path)
    saving.begin(4, HandEngine(), TRAINING, time.perf_counter())
    with pytest.raises(SaveFailed, match="SystemExit"):
        saving.wait()


def end_with_an_error(folder):
    engine, saving = HandEngine(), saver(folder)
    engine.set(3)
    write = save_module.write_rank_file

    def slowly(*args):
        time.sleep(0.3)
        return write(*args)

    save_module.write_rank_file = slowly
    saving.begin(3, engine, TRAINING, time.perf_counter())
    raise RuntimeError("training failed")


def test_an_exit_that_closes_nothing_loses_no_save(tmp_path, capfd):
    assert run_child(end_with_an_error, tmp_path) == 1
    assert Checkpoint(tmp_path / "step_00000003").step == 3


class TestFailure:
    def fail(self, monkeypatch):
        def full(*args):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(save_module, "write_rank_file", full)

    def test_it_is_raised_by_wait_and_the_older_one_stays(self, tmp_path, monkeypatch):
        engine, saving = HandEngine(), saver(tmp_path)
        save(saving, engine, 1)
        with monkeypatch.context() as patch:
            self.fail(patch)
            saving.begin(2, engine, TRAINING, time.perf_counter())
            with pytest.raises(SaveFailed, match=r"could not write it \(rank 0: OSError: .*No space left.*run\.dir$"):
                saving.wait()
        assert saving.running is None
        assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_00000001"]
        assert engine.holds(save(saving, engine, 3))

    def test_close_tells_of_it(self, tmp_path, monkeypatch):
        engine, saving = HandEngine(), saver(tmp_path)
        self.fail(monkeypatch)
        saving.begin(2, engine, TRAINING, time.perf_counter())
        assert "No space left" in saving.close()
        assert saving.close() == ""

    def test_an_old_one_that_cannot_be_removed_does_not_undo_the_save(self, tmp_path, monkeypatch):
        told = []
        engine, saving = HandEngine(), saver(tmp_path, Keep(1), told.append)
        save(saving, engine, 1)

        def refuse(*args):
            raise PermissionError("not yours")

        monkeypatch.setattr(save_module, "prune", refuse)
        assert engine.holds(save(saving, engine, 2))
        assert [(saved.step, "not yours" in saved.prune_problem) for saved in told] == [(1, False), (2, True)]


def save_beyond_the_limit(folder):
    """A file may have 64 KiB; the state is larger. Then it may have any size."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    engine, saving = HandEngine(width=128), saver(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limit[1]))
    saving.begin(1, engine, TRAINING, time.perf_counter())
    with pytest.raises(SaveFailed, match="File too large"):
        saving.wait()
    assert list(folder.iterdir()) == []
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert engine.holds(save(saving, engine, 2))


def test_no_room_for_the_file(tmp_path):
    assert run_child(save_beyond_the_limit, tmp_path) == 0


def test_a_disk_that_is_full_to_the_last_byte(tmp_path):
    """A file system of 256 KiB: no room for the file, nor for a word of it."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", tmp_path], capture_output=True).returncode:
        pytest.skip("only root may mount a file system; test_no_room_for_the_file asks the same of a limit")
    try:
        engine, small = HandEngine(width=128), HandEngine()
        saving = saver(tmp_path)
        assert small.holds(save(saver(tmp_path), small, 1))
        for step in (2, 3):
            saving.begin(step, engine, TRAINING, time.perf_counter())
            with pytest.raises(SaveFailed, match="No space left on device"):
                saving.wait()
            assert sorted(path.name for path in tmp_path.iterdir() if path.name != "ballast") == [
                "latest",
                "step_00000001",
            ]
            with (tmp_path / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
        found, _ = newest_good(tmp_path)
        small.set(1)
        assert small.holds(found)
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


class TestCallback:
    @pytest.fixture
    def trainer(self, tmp_path):
        section = SimpleNamespace(interval=2, keep_last=2, keep_every=4, asynchronous=True)
        folder = RunFolder(tmp_path / "run", writes=True)
        folder.acquire()
        progress = SimpleNamespace(step=0)
        return SimpleNamespace(
            experiment=SimpleNamespace(checkpoint=section),
            engine=HandEngine(),
            folder=folder,
            progress=progress,
            last_step=1000,
            state_dict=lambda: {"progress": {"step": progress.step}},
            tensors=dict,
        )

    def steps(self, trainer, callback, last):
        while trainer.progress.step < last:
            trainer.progress.step += 1
            trainer.engine.set(trainer.progress.step)
            callback.on_step_end(trainer, SimpleNamespace(step=trainer.progress.step))

    def events(self, trainer):
        return [json.loads(line) for line in (trainer.folder.path / "events.jsonl").read_text().splitlines()]

    def test_keep_last_and_keep_every(self, trainer):
        callback = Checkpoints({}, {})
        self.steps(trainer, callback, 11)
        callback.on_end(trainer)
        assert [step_of(folder) for folder in list_checkpoints(trainer.folder.checkpoints)] == [11, 10, 8, 4]
        assert [event["step"] for event in self.events(trainer)] == [2, 4, 6, 8, 10, 11]

    def test_a_save_waits_for_the_one_before(self, trainer, monkeypatch):
        callback, gate = Checkpoints({}, {}), Gate(monkeypatch, "rank_file_begun")
        self.steps(trainer, callback, 3)  # the first save is held up, training is not
        assert gate.reached.wait(30)
        threading.Timer(0.2, gate.open.set).start()
        self.steps(trainer, callback, 4)
        assert [event["step"] for event in self.events(trainer)][:1] == [2], "it was complete before the next began"
        callback.on_end(trainer)
        first, second = self.events(trainer)
        assert second["wait_seconds"] > 0
        assert first["write_seconds"] > 0
        assert second["stall_seconds"] >= second["wait_seconds"]

    def test_a_synchronous_save_is_complete_at_once(self, trainer):
        trainer.experiment.checkpoint.asynchronous = False
        callback = Checkpoints({}, {})
        self.steps(trainer, callback, 2)
        assert callback._saver.running is None
        assert [step_of(folder) for folder in list_checkpoints(trainer.folder.checkpoints)] == [2]

    def test_a_failure_is_an_alert_at_the_next_save(self, trainer, monkeypatch, capsys):
        callback = Checkpoints({}, {})
        self.steps(trainer, callback, 2)
        callback._saver.wait()
        with monkeypatch.context() as patch:
            TestFailure.fail(self, patch)
            self.steps(trainer, callback, 4)
            callback._saver._running.join()
        self.steps(trainer, callback, 6)
        callback.on_end(trainer)
        events = [(event["event"], event["step"]) for event in self.events(trainer)]
        assert events == [("save", 2), ("alert", 4), ("save", 6)]
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1
        assert said[0].startswith("step 4: checkpoint: could not write it (")
        assert said[0].endswith("training goes on")

    def test_a_failure_of_the_last_save_is_tried_again_and_then_raised(self, trainer, monkeypatch):
        callback = Checkpoints({}, {})
        self.steps(trainer, callback, 3)
        TestFailure.fail(self, monkeypatch)
        self.steps(trainer, callback, 4)
        with pytest.raises(SaveFailed, match="No space left"):
            callback.on_end(trainer)
        assert ("alert", 4) in [(event["event"], event["step"]) for event in self.events(trainer)]
        found, _ = newest_good(trainer.folder.checkpoints)
        assert found.step == 2

    def test_close_after_an_exception_lets_it_end(self, trainer, monkeypatch):
        callback, gate = Checkpoints({}, {}), Gate(monkeypatch, "shares_complete")
        self.steps(trainer, callback, 2)
        assert gate.reached.wait(30)
        threading.Timer(0.1, gate.open.set).start()
        callback.on_close(trainer)
        found, _ = newest_good(trainer.folder.checkpoints)
        assert found.step == 2
        assert trainer.engine.holds(found)

    def names(self, trainer):
        return sorted(path.name for path in trainer.folder.checkpoints.glob("*step_*"))

    def test_the_last_trusted_one_is_the_newest_from_then_on(self, trainer, monkeypatch):
        """A save that is being written is waited for; what is newer is set aside until the next rollback."""
        callback, gate = Checkpoints({}, {}), Gate(monkeypatch, "rank_file_begun")
        gate.open.set()
        self.steps(trainer, callback, 9)
        gate.open.clear()
        self.steps(trainer, callback, 10)
        threading.Timer(0.1, gate.open.set).start()
        found = callback.last_trusted(trainer, 9)
        assert (found.step, trainer.engine.holds(found)) == (8, False)
        assert self.names(trainer) == ["rolled_back_step_00000010", "step_00000004", "step_00000008"]
        assert (trainer.folder.checkpoints / "latest").read_text() == "step_00000008\n"
        newest, _ = newest_good(trainer.folder.checkpoints)
        assert newest.step == 8
        assert callback.last_trusted(trainer, 7).step == 4
        assert self.names(trainer) == ["rolled_back_step_00000008", "step_00000004"]

    def test_a_damaged_one_is_not_trusted(self, trainer):
        callback = Checkpoints({}, {})
        self.steps(trainer, callback, 8)
        callback._finish(trainer)
        (trainer.folder.checkpoints / "step_00000008" / "index.json").write_text("{")
        assert callback.last_trusted(trainer, 9).step == 6
        assert "damaged_step_00000008" in self.names(trainer)

    def test_where_none_can_be_trusted_nothing_is_touched(self, trainer):
        callback = Checkpoints({}, {})
        self.steps(trainer, callback, 4)
        assert callback.last_trusted(trainer, 1) is None
        assert self.names(trainer) == ["step_00000002", "step_00000004"]

    def test_a_state_in_doubt_is_not_saved_at_the_end(self, trainer):
        callback = Checkpoints({}, {})
        self.steps(trainer, callback, 3)
        callback.distrusts = True
        callback.on_end(trainer)
        assert self.names(trainer) == ["step_00000002"]


def measure_peak(folder, pipe):
    """Peak resident bytes of a session that saves twice and reads it back, over what was there before its state."""

    def status(key):
        return int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0]) * 1024

    warm = saver(folder / "warm")
    save(warm, HandEngine(), 1)
    before = status("VmRSS")
    engine = HandEngine(layers=16, width=512)
    saving = saver(folder / "large")
    for step in (1, 2):
        engine.set(step)
        Path("/proc/self/clear_refs").write_text("5")  # the peak of what follows
        saving.begin(step, engine, TRAINING, time.perf_counter())
        saving.wait()
    saved = status("VmHWM") - before
    del saving
    Path("/proc/self/clear_refs").write_text("5")
    checkpoint = Checkpoint(folder / "large" / "step_00000002")
    for shard in engine.owned_shards():
        for quantity in ("weight", "exp_avg", "exp_avg_sq"):
            checkpoint.read_into(getattr(shard, quantity), shard.name, 0, quantity)
    state = sum(flat.nbytes for flat in engine.flat.values())
    pipe.send((state, saved, status("VmHWM") - before))


def test_peak_memory_of_a_save_is_the_state_and_its_copy(tmp_path):
    """Bound of the project: 2.2 times the state. Reading back needs no second copy (the copy's memory is given up)."""
    ours, theirs = CONTEXT.Pipe()
    assert run_child(measure_peak, tmp_path, theirs) == 0
    state, saved, restored = ours.recv()
    assert state == 16 * 512 * 513 * 12
    assert 2.0 * state * 0.95 < saved < 2.2 * state
    assert restored < 1.3 * state
