"""The run's folder as its writer sees it: lock, logs, what is cut on resume, and figures JSON has no words for."""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import signal
import time

import pytest

from pretrain.errors import UserError
from pretrain.training.run_folder import EVENTS, LAYERS, METRICS, RunFolder

CONTEXT = mp.get_context("fork")


def hold(path, pipe):
    folder = RunFolder(path, writes=True)
    folder.acquire()
    pipe.send("held")
    time.sleep(60)


def try_to_hold(path, pipe, patience):
    folder = RunFolder(path, writes=True)
    try:
        folder.acquire(patience)
        pipe.send("held")
    except UserError as error:
        pipe.send(str(error))


@pytest.fixture
def holder(tmp_path):
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=hold, args=(tmp_path / "run", theirs), daemon=True)
    process.start()
    assert ours.poll(20)
    assert ours.recv() == "held"
    yield process
    process.kill()
    process.join()


def attempt(path, patience):
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=try_to_hold, args=(path, theirs, patience), daemon=True)
    process.start()
    assert ours.poll(20)
    answer = ours.recv()
    process.join()
    return answer


class TestLock:
    def test_a_second_writer_is_refused_by_name(self, holder, tmp_path):
        answer = attempt(tmp_path / "run", patience=0.3)
        assert str(tmp_path / "run") in answer
        assert f"process {holder.pid}" in answer
        assert len(answer.splitlines()) == 1

    def test_kill_9_frees_it_and_the_next_writer_waits_for_that(self, holder, tmp_path):
        os.kill(holder.pid, signal.SIGKILL)
        assert attempt(tmp_path / "run", patience=5) == "held"

    def test_a_stopped_writer_still_holds_it(self, holder, tmp_path):
        os.kill(holder.pid, signal.SIGSTOP)
        assert "is in use" in attempt(tmp_path / "run", patience=0.3)

    def test_readers_need_no_lock(self, holder, tmp_path):
        RunFolder(tmp_path / "run", writes=False).acquire()


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
        steps = [1, 2, 4, 4, 5, 6]
        for name in (METRICS, LAYERS):
            self.write(tmp_path, "".join(f'{{"step": {step}, "x": {step}.5}}\n' for step in steps), name)
        folder.cut_logs(4)
        for name in (METRICS, LAYERS):
            assert lines(tmp_path / name) == [{"step": step, "x": step + 0.5} for step in (1, 2, 4, 4)]
        folder.append(METRICS, {"step": 5})
        assert [line["step"] for line in lines(tmp_path / METRICS)] == [1, 2, 4, 4, 5]

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
