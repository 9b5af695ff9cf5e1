"""The run's folder as its writer sees it: lock, logs, what is cut on resume, and figures JSON has no words for."""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import signal

import pytest

from pretrain.errors import UserError
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
