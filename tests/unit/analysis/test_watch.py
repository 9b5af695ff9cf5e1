"""tools/watch.py: what it shows of whole, young, growing and damaged runs, and how it is left."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import pretrain
from pretrain.analysis.watch_follow import source
from pretrain.analysis.watch_plot import Line, plot, short
from pretrain.analysis.watch_run import MOST_STEPS, WatchedRun
from pretrain.analysis.watch_view import Choice, view

from .synthetic_runs import metric, write_lines, write_run

ROOT = Path(pretrain.__file__).parents[1]
TOOL = [sys.executable, str(ROOT / "tools" / "watch.py")]
ALARM = {
    "signal": "attention_logit_max",
    "figure": "attention_logit_max",
    "group": "decoder.self_attention",
    "layer": 1,
    "level": "alarm",
    "value": 327.0,
    "sentence": "attention_logit_max is 327 in decoder.self_attention, layer 1: softmax nears one-hot",
}


def append(path: Path, *records: Any) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def write_verdicts(run: Path, *verdicts: dict[str, Any]) -> None:
    text = json.dumps({"step": 20, "verdicts": verdicts}, indent=1) + "\n"
    (run / "new.json").write_text(text)
    (run / "new.json").replace(run / "verdicts.json")


def watched(path: Path) -> WatchedRun:
    run = WatchedRun(source(str(path), follow=True))
    run.update()
    return run


def screen(run: WatchedRun, width: int = 80, height: int = 24, choice: Choice | None = None) -> str:
    console = Console(width=width, height=height, file=open(os.devnull, "w"), record=True)  # noqa: SIM115
    console.print(view(run, choice or Choice(), width, height, unicode=True, hint="f: next figure"))
    return console.export_text()


def run_tool(*arguments: object, lines: int = 24, columns: int = 80, **more: str) -> subprocess.CompletedProcess[str]:
    size = {"COLUMNS": str(columns), "LINES": str(lines)}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"} | size | more
    return subprocess.run(
        [*TOOL, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=60, encoding="utf-8"
    )


# ---- the command


def test_once_on_a_terminal_of_80_by_24(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    write_verdicts(path, ALARM)
    done = run_tool(path, "--once")
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert len(lines) == 24
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("demo  encoder-decoder · deepnorm")
    assert lines[0].endswith("max_steps reached")
    assert lines[1] == "step 20/20  loss 6  val 5.25  src 1.25  lr 0.002  |g| 2  3,000 tokens/s"
    assert lines[2].startswith("alarm  attention_logit_max is 327 in decoder.self_attention")
    assert "LayerNorm input over layers, step 20" in done.stdout
    assert "10:09:00       20  end       max_steps reached" in done.stdout


def test_where_the_output_is_no_terminal_one_view_is_all(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    done = run_tool(path, PYTHONIOENCODING="ascii", columns=120, lines=40)
    assert done.returncode == 0
    assert "***" in done.stdout  # a curve without braille
    assert len(done.stdout.splitlines()) == 40


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: RUN"),
        (["nowhere"], "nowhere: no such run folder"),
        (["{tmp}"], "not a run folder"),
        (["{run}/metrics.jsonl"], "is a file; give the run's folder, {run}"),
        (["{run}", "--figure", "what"], "--figure what: this run has norm_input_rms, update_norm"),
        (["{run}", "--part", "what"], "--part what: norm_input_rms has the parts self_attention, ffn"),
        (["{run}", "--interval", "0"], "0 is below 0.2 s"),
        (["{run}", "--interval", "nan"], "nan is below 0.2 s"),
    ],
)
def test_wrong_input_is_one_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    run = write_run(tmp_path / "run")
    done = run_tool(*(text.format(tmp=tmp_path, run=run) for text in arguments))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert words.format(run=run) in done.stderr


def test_help_and_start_without_torch(tmp_path: Path) -> None:
    assert "python tools/watch.py runs/demo --once" in run_tool("--help").stdout
    code = "import sys, pretrain.analysis.watch; print(sorted({'torch', 'deepspeed'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == "[]\n"


class Terminal:
    """The tool on a terminal of its own."""

    def __init__(self, *arguments: object, columns: int = 80, lines: int = 24):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
        environment |= {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
        self.process = subprocess.Popen(
            [*TOOL, *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            # Tests in the background of a shell would pass on that Ctrl-C is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(slave)
        self.said = ""

    def until(self, words: str, seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while words not in self.said:
            assert time.monotonic() < end, f"{words!r} did not come: {self.said[-3000:]}"
            ready, _, _ = select.select([self.master], [], [], 0.1)
            if ready:
                chunk = os.read(self.master, 1 << 16).decode("utf-8", errors="replace")
                self.said += re.sub(r"\x1b\[[0-9;]*m", "", chunk)

    def leave(self, how: str) -> int:
        if how == "q":
            os.write(self.master, b"q")
        else:
            self.process.send_signal(signal.SIGINT)
        self.until("\x1b[?1049l")  # back from the other screen
        code = self.process.wait(timeout=20)  # it sets the terminal as it was: not to be closed before
        os.close(self.master)
        return code


@pytest.mark.parametrize("how", ["Ctrl-C", "q"])
def test_live_view_follows_the_files(tmp_path: Path, how: str) -> None:
    path = write_run(tmp_path / "run", steps=10)
    terminal = Terminal(path, "--interval", "0.2")
    terminal.until("step 10/20")
    append(path / "metrics.jsonl", metric(11))
    write_verdicts(path, ALARM)
    terminal.until("step 11/20")
    terminal.until("alarm")
    os.write(terminal.master, b"f")
    terminal.until("Weight update over layers")
    assert terminal.leave(how) == 0
    assert "Traceback" not in terminal.said


# ---- what is known of a run


def test_growing_files_and_half_written_lines(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", steps=10)
    run = watched(path)
    assert (run.last_step, run.sampled, run.newest("validation_loss")) == (10, 10, 5.25)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')
    run.update()
    assert run.last_step == 10
    with (path / "metrics.jsonl").open("a") as file:
        file.write('ss": 3.5}\nnot json\n[1]\n')
    run.update()
    assert (run.last_step, run.newest("loss")) == (11, 3.5)
    append(path / "layers.jsonl", {"step": 11, "signals": {"update_norm": {"encoder": [1.0, 2.0]}}})
    run.update()
    assert (run.sampled, run.figures()) == (11, ["update_norm"])


@pytest.mark.parametrize("how", ["rollback", "resume"])
def test_steps_that_were_undone_are_forgotten(tmp_path: Path, how: str) -> None:
    path = write_run(tmp_path / "run", steps=10)
    run = watched(path)
    if how == "rollback":  # the file goes on
        append(path / "metrics.jsonl", metric(7, loss=1.0), metric(8, loss=2.0))
    else:  # the file was cut
        write_lines(
            path / "metrics.jsonl", [*(metric(step) for step in range(1, 7)), metric(7, loss=1.0), metric(8, loss=2.0)]
        )
    run.update()
    steps, losses = run.curve("loss")
    assert steps.tolist() == list(range(1, 9))
    assert losses[-3:].tolist() == [7.4, 1.0, 2.0]


def test_verdicts_are_the_newest(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    run = watched(path)
    assert run.verdicts == []
    write_verdicts(path, ALARM | {"level": "ok"}, ALARM)
    run.update()
    assert [verdict["level"] for verdict in run.verdicts] == ["alarm", "ok"]
    write_verdicts(path, ALARM | {"level": "ok"})
    run.update()
    assert [verdict["level"] for verdict in run.verdicts] == ["ok"]
    (path / "verdicts.json").write_text('{\n "step": 3, "ver')
    run.update()
    assert len(run.verdicts) == 1


def test_a_run_that_is_silent_is_said_to_be(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    write_lines(path / "events.jsonl", [{"step": 0, "event": "start"}])
    assert screen(watched(path)).splitlines()[0].endswith("running")
    for name in ("metrics.jsonl", "events.jsonl"):
        os.utime(path / name, (0, time.time() - 7300))
    run = watched(path)
    assert "silent for 2:01:" in screen(run).splitlines()[0]
    append(path / "metrics.jsonl", metric(21))
    run.update()
    assert screen(run).splitlines()[0].endswith("running")


def test_memory_does_not_grow_with_the_run(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    run = watched(path)
    write_lines(path / "metrics.jsonl", [{"step": step, "loss": 1.0} for step in range(1, 2 * MOST_STEPS)])
    run.update()
    assert len(run.steps) <= MOST_STEPS
    assert run.last_step == 2 * MOST_STEPS - 1


def test_heads_show_the_worst(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    heads = {"attention_entropy_min": {"encoder.self_attention": [[0.5, 0.1], [0.2, 0.9]]}}
    append(path / "layers.jsonl", {"step": 21, "signals": heads})
    run = watched(path)
    (profile,) = run.profile("attention_entropy_min", "self_attention").values()
    np.testing.assert_allclose(profile, [0.1, 0.2])


# ---- the screen


def test_the_profile_shown_is_the_worst_verdicts_unless_chosen(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    append(
        path / "layers.jsonl",
        {
            "step": 21,
            "signals": {
                "norm_input_rms": {"encoder.ffn": [1.0, 2.0]},
                "attention_logit_max": {f"decoder.{part}_attention": [[1.0], [2.0]] for part in ("cross", "self")},
            },
        },
    )
    write_verdicts(path, ALARM)
    run = watched(path)
    assert Choice().of(run) == ("attention_logit_max", "self_attention")
    assert Choice("norm_input_rms").of(run) == ("norm_input_rms", "ffn")
    choice = Choice()
    choice.next_part(run)
    assert choice.of(run) == ("attention_logit_max", "cross_attention")
    choice.next_figure(run)
    assert choice.of(run) == ("norm_input_rms", "ffn")


@pytest.mark.parametrize("case", ["config only", "no layers", "not finite", "one step"])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (132, 50), (40, 12)])
def test_poor_runs_and_other_sizes(tmp_path: Path, case: str, width: int, height: int) -> None:
    path = write_run(tmp_path / "run")
    if case == "config only":
        for name in ("metrics.jsonl", "layers.jsonl", "events.jsonl"):
            (path / name).unlink()
    elif case == "no layers":
        (path / "layers.jsonl").unlink()
    elif case == "one step":
        write_lines(path / "metrics.jsonl", [metric(1)])
    else:
        write_lines(path / "metrics.jsonl", [metric(1, loss=float("nan")), metric(2, loss="inf", lr=None)])
        write_lines(path / "layers.jsonl", [{"step": 1, "signals": {"x": {"encoder": [None, None]}}}])
    lines = screen(watched(path), width, height).splitlines()
    assert max(map(len, lines)) <= width
    assert height < 16 or len(lines) == height
    assert ("nothing to show yet" in "\n".join(lines)) == (case != "one step")


@pytest.mark.parametrize("length", [10, 70, 90, 140, 170, 400])
def test_a_long_verdict_takes_two_lines_and_the_screen_keeps_its_height(tmp_path: Path, length: int) -> None:
    path = write_run(tmp_path / "run")
    words = " ".join(["perfectly", "unwieldy", "sentences"] * 30)[:length].strip()
    write_verdicts(path, ALARM | {"sentence": words}, ALARM)
    lines = screen(watched(path)).splitlines()
    assert len(lines) == 24
    assert lines[2].startswith(f"alarm (and 1 more)  {words[:10]}")
    assert ("…" in lines[3]) == (length > 130)


def test_plots_put_points_where_they_belong() -> None:
    xs = np.arange(5.0)
    rows = [text.plain for text in plot([Line(xs, xs)], width=29, height=6, unicode=False)]
    field = [row[9:] for row in rows[:-1]]
    assert [row.strip() for row in rows[-1:]] == ["0" + " " * 18 + "4"]
    assert [row[:8].strip() for row in rows[:-1]] == ["4", "", "2", "", "0"]
    assert field[0].endswith("*")
    assert field[-1].startswith("*")
    assert all(row.find("*") >= below.find("*") for row, below in itertools.pairwise(field))


def test_plots_are_logarithmic_over_decades_and_skip_what_is_not_finite() -> None:
    ys = np.array([1e-4, np.nan, 1.0, np.inf, 1e4])
    rows = [text.plain for text in plot([Line(np.arange(5.0), ys)], width=40, height=8, unicode=True)]
    assert [row[:8].strip() for row in rows[:-1]] == ["10,000", "", "", "1", "", "", "1.0e-04"]
    assert rows[3][9 + 14 : 9 + 17].strip("\u2800 ")  # 1 stands in the middle of both axes


def test_labels_of_values_that_lie_close_together_differ() -> None:
    rows = [text.plain[:8].strip() for text in plot([Line(np.arange(3.0), 1 + 1e-5 * np.arange(3))], 40, 8, True)[:-1]]
    assert [row for row in rows if row] == ["1.00002", "1.00001", "1"]


def test_a_peak_among_many_points_of_a_column_is_seen() -> None:
    ys = np.ones(10_000)
    ys[5000] = 2.0
    top = plot([Line(np.arange(10_000.0), ys)], width=60, height=10, unicode=False)[0].plain
    assert top[9:].count("*") == 1


@pytest.mark.parametrize("value", [0.0, 1.0, -1.5, 12345.678, 99_999.0, 1e5, -1.23e-7, 3e300, -3e-300, -0.00123456])
def test_numbers_fit_into_their_column(value: float) -> None:
    assert len(short(value)) <= 8
    assert float(short(value).replace(",", "")) == pytest.approx(value, rel=0.05)
