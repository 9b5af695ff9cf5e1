"""The run's folder as its writer sees it: lock, logs, what is cut on resume, and figures JSON has no words for."""

from __future__ import annotations

import errno
import json
import multiprocessing as mp
import os
import signal

import pytest

from pretrain.errors import UserError
from pretrain.state import files
from pretrain.state.run_files import EVENTS, LAYERS, METRICS
from pretrain.training.run_folder import RunFolder

CONTEXT = mp.get_context("fork")


def hold(path, pipe):
    """A writer that says when it begins to end, and ends when it is told to."""
    folder = RunFolder(path, writes=True)
    folder.acquire()
    pipe.send("held")
    while pipe.recv() == "ending":
        folder.ending()
        pipe.send("said")


def try_to_hold(path, pipe, grace, patience):
    folder = RunFolder(path, writes=True)
    try:
        folder.acquire(grace, patience)
        pipe.send("held")
    except UserError as error:
        pipe.send(str(error))


class Holder:
    def __init__(self, path):
        self.pipe, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=hold, args=(path, theirs), daemon=True)
        self.process.start()
        assert self.heard() == "held"

    def heard(self):
        assert self.pipe.poll(20)
        return self.pipe.recv()

    def say(self, word):
        self.pipe.send(word)
        return self.heard() if word == "ending" else None


@pytest.fixture
def holder(tmp_path):
    holder = Holder(tmp_path / "run")
    yield holder
    holder.process.kill()
    holder.process.join()


class Attempt:
    """Another process that wants the folder. `grace`: for a writer at work; `patience`: for one that is ending."""

    def __init__(self, path, grace, patience):
        self.pipe, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=try_to_hold, args=(path, theirs, grace, patience), daemon=True)
        self.process.start()

    def waits(self):
        return not self.pipe.poll(1)

    def answer(self):
        assert self.pipe.poll(20)
        answer = self.pipe.recv()
        self.process.join()
        return answer


class TestLock:
    def test_a_writer_at_work_is_not_waited_for_and_named(self, holder, tmp_path):
        answer = Attempt(tmp_path / "run", grace=0.3, patience=600).answer()
        assert str(tmp_path / "run") in answer
        assert f"process {holder.process.pid}" in answer
        assert len(answer.splitlines()) == 1

    def test_a_writer_that_is_ending_is_waited_for(self, holder, tmp_path):
        """It finishes a step and saves, which takes half a minute at 1000 layers."""
        holder.say("ending")
        attempt = Attempt(tmp_path / "run", grace=0.1, patience=600)
        assert attempt.waits()
        holder.say("now")
        assert attempt.answer() == "held"

    def test_a_writer_that_begins_to_end_in_the_time_of_grace_is_waited_for(self, holder, tmp_path):
        """A rank learns only after a second that its launcher was killed."""
        attempt = Attempt(tmp_path / "run", grace=15, patience=600)
        assert attempt.waits()
        holder.say("ending")
        assert attempt.waits()
        holder.say("now")
        assert attempt.answer() == "held"

    def test_an_end_that_does_not_come_is_refused(self, holder, tmp_path):
        holder.say("ending")
        answer = Attempt(tmp_path / "run", grace=0.1, patience=0.5).answer()
        assert f"process {holder.process.pid}" in answer
        assert "which is ending" in answer
        assert len(answer.splitlines()) == 1

    def test_who_was_ending_is_forgotten_by_the_next_writer(self, holder, tmp_path):
        holder.say("ending")
        holder.say("now")
        second = Holder(tmp_path / "run")
        answer = Attempt(tmp_path / "run", grace=0.1, patience=600).answer()
        assert f"process {second.process.pid}" in answer
        assert "which is ending" not in answer
        second.process.kill()

    def test_kill_9_frees_it_and_the_next_writer_waits_for_that(self, holder, tmp_path):
        os.kill(holder.process.pid, signal.SIGKILL)
        assert Attempt(tmp_path / "run", grace=5, patience=5).answer() == "held"

    def test_a_stopped_writer_still_holds_it(self, holder, tmp_path):
        os.kill(holder.process.pid, signal.SIGSTOP)
        assert "is in use" in Attempt(tmp_path / "run", grace=0.3, patience=600).answer()

    def test_readers_need_no_lock(self, holder, tmp_path):
        RunFolder(tmp_path / "run", writes=False).acquire()
        RunFolder(tmp_path / "run", writes=False).ending()


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path, writes=True)


def lines(path):
    return [
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in {path.name}"))
        for line in path.read_text().splitlines()
    ]


class TestLogs:
    def test_figures_that_are_not_finite_are_null(self, folder, tmp_path):
        nan, inf = float("nan"), float("inf")
        folder.append(METRICS, {"step": 1, "loss": nan, "deep": {"a": [1.0, inf, [-inf]], "b": (nan, 2)}, "n": 3})
        folder.event("skip", 1, loss=nan)
        folder.update_summary({"validation_loss": inf})
        assert lines(tmp_path / METRICS) == [
            {"step": 1, "loss": None, "deep": {"a": [1.0, None, [None]], "b": [None, 2]}, "n": 3}
        ]
        assert lines(tmp_path / EVENTS)[0]["loss"] is None
        assert json.loads((tmp_path / "summary.json").read_text()) == {"validation_loss": None}

    def test_floats_come_back_exactly(self, folder, tmp_path):
        values = [0.1 + 0.2, 1e-300, 1 / 3, 5e-324]
        folder.append(METRICS, {"step": 1, "values": values})
        assert lines(tmp_path / METRICS)[0]["values"] == values

    def test_events_have_a_time_in_utc(self, folder, tmp_path):
        folder.event("start", 0, reason="because")
        (event,) = lines(tmp_path / EVENTS)
        assert list(event) == ["time", "step", "event", "reason"]
        assert event["time"].endswith("+00:00")

    def test_summary_is_merged(self, folder, tmp_path):
        folder.update_summary({"a": 1, "b": 2})
        folder.update_summary({"b": 3})
        assert json.loads((tmp_path / "summary.json").read_text()) == {"a": 1, "b": 3}

    def test_only_the_writer_writes(self, tmp_path):
        folder = RunFolder(tmp_path / "other", writes=False)
        folder.acquire()
        folder.append(METRICS, {"step": 1})
        folder.event("start", 0)
        folder.write("config.yaml", "x")
        folder.update_summary({})
        folder.cut_logs(0)
        assert not (tmp_path / "other").exists()


class TestCut:
    def write(self, tmp_path, text, name=METRICS):
        (tmp_path / name).write_text(text)

    def test_what_lies_beyond_the_step_goes(self, folder, tmp_path):
        steps = [1, 2, 4, 5, 6]
        for name in (METRICS, LAYERS):
            self.write(tmp_path, "".join(f'{{"step": {step}, "x": {step}.5}}\n' for step in steps), name)
        folder.cut_logs(4)
        for name in (METRICS, LAYERS):
            assert lines(tmp_path / name) == [{"step": step, "x": step + 0.5} for step in (1, 2, 4)]
        folder.append(METRICS, {"step": 5})
        assert [line["step"] for line in lines(tmp_path / METRICS)] == [1, 2, 4, 5]

    @pytest.mark.parametrize(
        "half", ['{"step": 3, "lo', '{"step": 3', "{", '{"step": 3, "x": [1, 2', '{"step": 3, "x": "ü']
    )
    def test_a_half_line_goes(self, folder, tmp_path, half):
        self.write(tmp_path, f'{{"step": 1}}\n{{"step": 2}}\n{half}')
        folder.cut_logs(5)
        folder.append(METRICS, {"step": 3})
        assert [line["step"] for line in lines(tmp_path / METRICS)] == [1, 2, 3]

    def test_a_whole_line_without_its_end_stays(self, folder, tmp_path):
        self.write(tmp_path, '{"step": 1}\n{"step": 2}')
        folder.cut_logs(5)
        folder.append(METRICS, {"step": 3})
        assert [line["step"] for line in lines(tmp_path / METRICS)] == [1, 2, 3]

    def test_blocks_of_zeros_after_a_power_cut(self, folder, tmp_path):
        (tmp_path / METRICS).write_bytes(b'{"step": 1}\n' + b"\0" * 50)
        folder.cut_logs(5)
        assert [line["step"] for line in lines(tmp_path / METRICS)] == [1]

    def test_a_half_event_does_not_swallow_the_next(self, folder, tmp_path):
        """events.jsonl is never cut; what is appended after half a line must still be readable."""
        self.write(tmp_path, '{"time": "x", "step": 1, "event": "start"}\n{"time": "y", "st', EVENTS)
        folder.cut_logs(1)
        folder.event("resume", 1)
        read = []
        for line in (tmp_path / EVENTS).read_text().splitlines():
            try:
                read.append(json.loads(line)["event"])
            except ValueError:
                continue
        assert read == ["start", "resume"]

    def test_nothing_there(self, folder, tmp_path):
        folder.cut_logs(3)
        assert list(tmp_path.iterdir()) == []


class TestRoom:
    """The folder of a session whose disk is full: os.write and the flush of a file fail."""

    @pytest.fixture
    def full(self, folder, monkeypatch):
        folder.acquire()
        full = {"is": True}
        write, flush = os.write, files.flush

        def fail(*args):
            if full["is"]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "write", lambda *args: fail() or write(*args))
        monkeypatch.setattr(files, "flush", lambda *args: fail() or flush(*args))
        return full

    def test_what_finds_no_room_waits_is_said_once_and_is_written(self, folder, full, tmp_path, capsys):
        for step in (1, 2):
            folder.append(METRICS, {"step": step})
            folder.append_bytes("tensorboard/events", b"%d" % step)
            folder.write("verdicts.json", f"{step}")
            folder.update_summary({f"at_{step}": step})
            with pytest.raises(OSError, match=f"make room on that disk: '{tmp_path}/"):
                folder.complete()
        assert capsys.readouterr().err.count("waits in memory, and training goes on\n") == 1
        full["is"] = False
        folder.append(METRICS, {"step": 3})
        folder.complete()
        assert [entry["step"] for entry in lines(tmp_path / METRICS)] == [1, 2, 3]
        assert (tmp_path / "tensorboard" / "events").read_bytes() == b"12"
        assert (tmp_path / "verdicts.json").read_text() == "2"
        assert json.loads((tmp_path / "summary.json").read_text()) == {"at_1": 1, "at_2": 2}
        assert [event["event"] for event in lines(tmp_path / EVENTS)] == ["alert", "alert"]
        assert capsys.readouterr().err.endswith("there is room again: what waited in memory is written\n")

    def test_a_rollback_forgets_what_waits_beyond_it(self, folder, full, tmp_path):
        for step in (1, 2, 3):
            folder.append(METRICS, {"step": step})
        folder.cut_logs(2)
        folder.append(METRICS, {"step": 3, "again": True})
        full["is"] = False
        folder.complete()
        assert [entry.get("again") for entry in lines(tmp_path / METRICS)] == [None, None, True]

    def test_no_session_begins_without_room(self, folder, full, tmp_path):
        with pytest.raises(OSError, match="No space left on device, make room"):
            folder.check_room()
        full["is"] = False
        folder.check_room()
        assert not list(tmp_path.glob(".room*"))

    def test_who_does_not_hold_the_folder_is_told_at_once(self, full, tmp_path):
        with pytest.raises(OSError, match=EVENTS):
            RunFolder(tmp_path, writes=True).event("hang", 3)


class TestMended:
    def test_damage_and_a_hole_are_said_in_one_line_and_once(self, folder, tmp_path, capsys):
        for step in (1, 2, 3, 4):
            folder.append(METRICS, {"step": step, "loss": 1.0})
        known = json.loads(json.dumps(folder.state_dict()))
        text = (tmp_path / METRICS).read_bytes().splitlines(keepends=True)
        (tmp_path / METRICS).write_bytes(text[0] + b"\xff" + text[1] + text[3] + b'{"step": 5, "loss": 1}\n')
        second = RunFolder(tmp_path, writes=True)
        second.load_state_dict(known)
        second.cut_logs(4)
        second.cut_logs(4)
        reason = (
            "metrics.jsonl, up to step 4, from which this run goes on: 1 line could not be read and was left out; "
            "steps 2 to 3 are missing"
        )
        assert capsys.readouterr().err == f"{tmp_path}: {reason}\n"
        assert [event["reason"] for event in lines(tmp_path / EVENTS)] == [reason]
        assert [entry["step"] for entry in lines(tmp_path / METRICS)] == [1, 4]
