"""tools/prepare_data.py as a user calls it."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "tools" / "prepare_data.py"


@pytest.fixture
def recipe(tmp_path, sources):
    path = tmp_path / "small.yaml"
    path.write_text(
        f"run: {{cache: {tmp_path}/cache}}\n"
        f"data: {{train: {sources}, glob: '**/*.py', vocab_size: 800, sequence_length: 32}}\n"
    )
    return str(path)


@pytest.fixture
def call(recipe, capsys):
    """Runs the command within this process; returns exit code, standard output, standard error."""
    spec = importlib.util.spec_from_file_location("prepare_data", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run(command, *words):
        try:
            code = script.main([command, "--recipe", recipe, *words])
        except SystemExit as ended:
            code = ended.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_it_runs_from_a_clone(recipe):
    answer = subprocess.run(
        [sys.executable, str(SCRIPT), "tokens", "--recipe", recipe],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert answer.returncode == 0, answer.stderr
    assert "nats a token" in answer.stdout
    assert answer.stderr == ""  # no progress bar where there is no terminal


def test_tokenizer_tokens_inspect(call, tmp_path):
    model = tmp_path / "my.model"
    code, said, _ = call("tokenizer", "-o", str(model), "data.vocab_size=700")
    assert code == 0
    assert "pieces       700, 100 of them sentinels" in said
    code, said, _ = call("tokens", f"data.tokenizer={model}")
    assert code == 0
    assert str(model) in said
    code, said, _ = call("inspect", "--split", "validation", "--index", "2", "--count", "2", f"data.tokenizer={model}")
    assert code == 0
    heads = [line for line in said.splitlines() if line.startswith("=== ")]
    assert [" ".join(head.split()[1:5]) for head in heads] == [
        f"validation sample {index}: {part}," for index in (2, 3) for part in ("text", "source", "target")
    ]
    assert said.count("<extra_id_0>") == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tokens", "data.train=/absent"], "data.train: /absent does not exist"),
        (["tokens", "data.tokenizer=/absent.model"], "data.tokenizer: /absent.model"),
        (["tokens", "data.vocab_size=100"], "data.vocab_size: 100"),
        (["tokens", "data.trian=x"], "data.trian"),
        (["tokens", "--recipee", "x"], "unknown option --recipee"),
        (["inspect", "--split", "test"], "--split"),
        (["tokenizer", "-o", "/absent/x.model"], "--output: /absent/x.model"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(call, words, said):
    code, out, err = call(*words)
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1
    assert out == ""


def test_help_and_version(call):
    code, said, _ = call("inspect", "--help")
    assert code == 0
    assert "examples:" in said
    answer = subprocess.run([sys.executable, str(SCRIPT), "--version"], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0
    assert answer.stdout.startswith("kilolayer 0.")
