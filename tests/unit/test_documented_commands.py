"""Every command of README, docs, recipes and --help is taken by the real parsers and passes the real checks."""

from __future__ import annotations

import argparse
import importlib.util
import re

import pytest
from documented_commands import ROOT, Command, commands

import pretrain.launch.again
import pretrain.launch.submit
from pretrain import command_line, train
from pretrain.config.checks import check
from pretrain.config.deepspeed import deepspeed_config, load_deepspeed_json
from pretrain.config.load import load_experiment, to_yaml
from pretrain.errors import UserError

FOUND = commands()
CORPORA = ("data.train=", "data.validation=", "data.tokenizer=")


class Parsed(Exception):
    """A program has understood its command line and would begin."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder, and ds_configs as in a checkout."""
    (tmp_path / "ds_configs").symlink_to(ROOT / "ds_configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stand_in(command: Command, folder) -> None:
    """The files of a user's own that a command names."""
    for word in command.arguments:
        path = folder / word.partition("=")[2]
        if word.startswith(CORPORA) and path != folder and not path.exists():
            if path.suffix in (".jsonl", ".model", ".tsv"):
                path.touch()
            elif word.endswith("/"):
                path.mkdir()
        elif word.endswith(".yaml") and not (folder / word).exists():
            (folder / word).parent.mkdir(parents=True, exist_ok=True)
            (folder / word).write_text(to_yaml(load_experiment("demo")))


def parse(command: Command, monkeypatch) -> argparse.Namespace:
    """What the program's own parser makes of the arguments; argparse's exit is a failure."""
    parsed: list[argparse.Namespace] = []
    inner = argparse.ArgumentParser.parse_known_args

    def record(parser, *args, **kwargs):
        result = inner(parser, *args, **kwargs)
        parsed.append(result[0])  # that of a subparser comes before that of its parent
        return result

    def stop(*args, **kwargs):
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", record)
    if command.program == "pretrain/train.py":
        return train.arguments(list(command.arguments))
    for module in (command_line, pretrain.launch.submit, pretrain.launch.again):
        monkeypatch.setattr(module, "run", stop)
    spec = importlib.util.spec_from_file_location("documented", ROOT / command.program)
    assert spec is not None, f"{command.program} is no program"
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    with pytest.raises(Parsed):
        tool.main(list(command.arguments))
    return parsed[-1]


def processes(command: Command, arguments: argparse.Namespace, stages: int) -> int:
    """How many the command starts, as far as it says so; else one a pipeline stage."""
    if command.program == "tools/submit.py":
        return arguments.nodes * (arguments.gpus_per_node or arguments.tasks_per_node or 1)
    if command.program == "tools/bench.py":
        return arguments.processes or stages
    if command.program == "tools/plan.py":  # chooses its own stages
        return stages
    said = re.search(r"(?:--num_gpus|--nproc_per_node|-n)[ =](\d+)", " ".join(command.launcher))
    said = said or re.search(r"(\d+) GPUs", command.remark)
    if said:
        return int(said[1])
    return stages if command.launcher[-1] == "deepspeed" or "srun" in command.launcher else 1


def problem(command: Command, arguments: argparse.Namespace) -> str:
    """What the checks before any process group say; empty if all is well."""
    try:
        if getattr(arguments, "recipe", None) is None:
            return ""
        experiment = load_experiment(arguments.recipe, arguments.overrides, tiny=arguments.tiny)
        if command.program in ("tools/prepare_data.py", "tools/checkpoint.py"):  # trains nothing: any model will do
            return ""
        plan = check(experiment, processes(command, arguments, experiment.parallel.pipeline_stages), "cuda")
        if getattr(arguments, "deepspeed_config", None):
            deepspeed_config(experiment, plan, load_deepspeed_json(arguments.deepspeed_config))
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("command", FOUND, ids=str)
def test_it_is_accepted(command, folder, monkeypatch):
    stand_in(command, folder)
    assert problem(command, parse(command, monkeypatch)) == command.fails_with


def test_launchers_know_their_options():
    from deepspeed.launcher.runner import parse_args

    for command in FOUND:
        if command.launcher[0] == "deepspeed":
            words = [*command.launcher[1:], command.program, *command.arguments]
            assert parse_args(words).user_args == list(command.arguments)


def test_the_search_finds_what_the_pages_show():
    """At least as many as lines that begin like a command, so that the test above is not empty by mistake."""
    places = {command.place for command in FOUND}
    assert {"README.md", "docs/training.md", "docs/slurm.md", "docs/data.md", "docs/huggingface.md"} <= places
    assert {command.program for command in FOUND} >= {"pretrain/train.py", "tools/submit.py", "tools/generate.py"}
    assert any(command.fails_with for command in FOUND)
    (prompt,) = {a for c in FOUND if c.place == "docs/huggingface.md" for a in c.arguments if "\n" in a}
    assert prompt.startswith("        raise <mask>('not found')\n"), "quotes over two lines"
