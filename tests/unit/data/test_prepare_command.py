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


def test_one_tokenizer_can_serve_all_objectives(call, tmp_path):
    model = tmp_path / "all.model"
    code, said, _ = call("tokenizer", "--mask", "-o", str(model))
    assert code == 0
    assert "100 of them sentinels" in said
    assert "eos 3, mask 104" in said
    for kind in ("span_denoising", "bart_denoising", "masked_lm", "causal_lm", "prefix_lm"):
        code, said, error = call("inspect", f"data.tokenizer={model}", f"objective.kind={kind}")
        assert (code, error) == (0, "")
        assert len([line for line in said.splitlines() if line.startswith("=== ")]) == 3


def parts(said):
    """What `inspect` printed below each heading, by the heading's name."""
    found = {}
    for line in said.splitlines():
        if line.startswith("=== "):
            below = found[line.split(": ")[1].split(",")[0]] = []
        else:
            below.append(line)
    return found


def test_inspect_shows_the_documents_of_a_sample(call, sources):
    words = ["data.document_mask=true", "data.sequence_length=4000", "--split", "validation"]
    code, said, _ = call("inspect", "objective.kind=causal_lm", "data.validation_fraction=0.4", *words)
    assert code == 0
    shown = parts(said)
    heads = [line for line in shown["input"] if line.startswith("--- document")]
    assert len(heads) > 1
    assert [int(head.split()[2].rstrip(",")) for head in heads] == list(range(1, len(heads) + 1))
    assert "\n".join(shown["input"]).count("<s>") == len(heads)
    assert shown["labels"] == shown["text"]


def test_inspect_shows_prefix_and_labels(call):
    code, said, _ = call("inspect", "objective.kind=prefix_lm", "objective.min_prefix_share=0.5")
    assert code == 0
    shown = parts(said)
    assert shown["input"][0].startswith("--- document 1, its prefix, ")
    prefix = int(shown["input"][0].split()[5])
    assert f"--- positions {prefix - 1} to 31" == shown["labels"][0]
    assert "\n".join(shown["text"]).endswith("\n".join(shown["labels"][1:]))


def test_inspect_shows_what_was_masked(call):
    keys = ["objective.mask_share=1", "objective.random_share=0", "data.sequence_length=42"]
    code, said, _ = call("inspect", "objective.kind=masked_lm", *keys)
    assert code == 0
    shown = parts(said)
    assert len(shown["labels"]) == 6
    assert all(" '<mask>' was '" in line or " '<mask>' was \"" in line for line in shown["labels"])
    assert "\n".join(shown["input"]).count("<mask>") == 6


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
        (["tokens", "objective.kind=masked_lm", "objective.rate=1.5"], "objective.rate = 1.5"),
        (["tokens", "objective.kind=masked_lm", "objective.mask_share=1.0"], "objective.random_share = 0.1"),
        (["tokens", "objective.kind=causal_lm", "objective.rate=0.1"], "objective.kind = 'causal_lm' has no such key"),
        (["tokens", "objective.kind=bart_denoising", "data.sequence_length=1"], "data.sequence_length: 1"),
        (["inspect", "objective.kind=bart_denoising", "data.document_mask=true"], "data.document_mask = true"),
        (["inspect", "data.document_mask=true"], "does not go with objective.kind = span_denoising"),
        (["tokens", "objective.kind=masked"], "objective.kind = 'masked' is not a known kind"),
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
