"""Names from files, and paths that the system may not take."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.config.load import load_experiment
from pretrain.config.paths import NAME, NAME_LENGTH, as_text, name_of
from pretrain.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]


def write(folder: Path, name: str, text: str = "base: demo\ntiny: {}") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("my run.yaml", "my-run"),
        ("a (copy, 2).yaml", "a-copy-2"),
        ("-x.yaml", "x"),
        ("v1.2_b.yaml", "v1.2_b"),
        ("demo-.yaml", "demo-"),
        ("größe.yaml", r"gr-e-[0-9a-f]{8}"),
        ("模型.yml", r"run-[0-9a-f]{8}"),
        ("x" * 240 + ".yaml", r"x{191}-[0-9a-f]{8}"),
    ],
)
def test_a_recipes_file_gives_a_valid_name(file, expected, tmp_path):
    recipe = write(tmp_path, file)
    name = load_experiment(recipe).name
    assert re.fullmatch(expected, name)
    tiny = load_experiment(recipe, tiny=True).name
    assert tiny.endswith("-tiny")
    assert tiny != name
    for each in (name, tiny):
        assert re.fullmatch(NAME, each)
        assert len(each) <= NAME_LENGTH
        (tmp_path / "runs" / each).mkdir(parents=True)


def test_names_that_lose_letters_stay_apart_and_do_not_depend_on_the_locale():
    assert name_of("größe") != name_of("grüße")
    assert name_of("x" * 300) != name_of("x" * 301)
    assert name_of(os.fsencode("größe").decode("ascii", "surrogateescape")) == name_of("größe")


def refusal(*overrides: str, recipe: str = "demo") -> str:
    with pytest.raises(ConfigError) as caught:
        load_experiment(recipe, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_argument_is_text_in_whatever_locale_it_was_read():
    assert as_text("data.train=k\udcc3\udcb6ln") == "data.train=köln"
    assert load_experiment("demo", ["data.glob=k\udcc3\udcb6ln*"]).data.glob == "köln*"


def test_bytes_that_are_no_text_are_said_to_be_so(tmp_path):
    assert "'data.train=lat\\udcf6n' is not UTF-8 text" in refusal("data.train=lat\udcf6n")
    recipe = write(tmp_path, "half.yaml", 'base: demo\nname: "a\\uDC80"')
    assert "half.yaml: name = 'a\\udc80' holds half a character" in refusal(recipe=recipe)


@pytest.mark.parametrize("key", ["run.dir", "run.cache", "data.train", "data.validation", "data.tokenizer"])
def test_paths_that_the_system_cannot_take_are_named(key, monkeypatch):
    assert f"{key} = {'x' * 60}..." in refusal(f"{key}={'x' * 300}")
    assert f"{key} = 'a\\x00b' is no path" in refusal(f'{key}="a\\0b"')


def test_a_recipe_file_with_too_long_a_name_is_named():
    assert "is too long for this file system" in refusal(recipe="x" * 300 + ".yaml")


@pytest.mark.slow
def test_the_c_locale(tmp_path):
    """The trainer in a locale that knows ASCII only: one line, of the path or of the locale; a plan is printed."""

    def started(*arguments: str) -> tuple[int, str, str]:
        command = [sys.executable, "pretrain/train.py", *arguments]
        environ = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0"}
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, timeout=120, check=False)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    path = tmp_path / "köln"
    code, _, error = started("--recipe", "demo", f"data.train={path}")
    assert (code, error.count("\n")) == (2, 1), error
    assert "k\\xf6ln' cannot be spelled in this locale (ascii); set LC_ALL=C.UTF-8" in error
    recipe = write(tmp_path, "größe.yaml", "base: demo\nname: x\ndata: {glob: größe*}\nparallel: {pipeline_stages: 1}")
    code, printed, error = started("--recipe", recipe, "--dry-run")
    assert (code, error) == (0, "")
    assert "gr\\xf6\\xdfe" in printed
    code, _, error = started("--recipe", recipe)
    assert (code, error.count("\n")) == (2, 1), error
    assert "this locale knows ASCII only" in error
