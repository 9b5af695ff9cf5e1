"""Finds the commands that the documentation shows, as a shell would read them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("*/README.md"))]
PROGRAMS = [
    ROOT / "pretrain" / "train.py",
    ROOT / "pretrain" / "launch" / "submit.py",
    ROOT / "pretrain" / "launch" / "again.py",
    *sorted(ROOT.glob("tools/*.py")),
]
RECIPES = sorted(ROOT.glob("pretrain/recipes/*.yaml"))
PROGRAM = re.compile(r"(?:^|.*/)(pretrain/train\.py|tools/\w+\.py)$")
START = re.compile(
    r"\s*(?:\w+=\S+ )*(?:\S*/)?(?:python|deepspeed|srun|torchrun|mpirun) .*?(?:pretrain/train|tools/\w+)\.py(?:\s|$)"
)


@dataclass(frozen=True)
class Command:
    """`launcher` is what stands before the program, `fails_with` the line that the page says it ends with."""

    place: str
    launcher: tuple[str, ...]
    program: str
    arguments: tuple[str, ...]
    remark: str = ""
    fails_with: str = ""

    def __str__(self) -> str:
        return f"{self.place} {' '.join((self.program, *self.arguments))}"


def commands() -> list[Command]:
    """All of them, each once a place."""
    found = [command for page in PAGES for command in _of_page(page)]
    found += [command for program in PROGRAMS for command in _of_lines(_name(program), program.read_text().split("\n"))]
    for recipe in RECIPES:
        head = [line[1:].replace("Command:", "") for line in recipe.read_text().split("\n") if line.startswith("#")]
        # A remark in parentheses, set off by spaces, is no part of the command.
        found += _of_lines(_name(recipe), [re.sub(r"\s{3,}(?=\()", "  # ", line) for line in head])
    return found


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _of_page(page: Path) -> Iterator[Command]:
    text = page.read_text(encoding="utf-8")
    blocks = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
    for block in blocks.findall(text):
        yield from _of_lines(_name(page), block.split("\n"))
    for span in re.findall(r"`([^`\n]+)`", blocks.sub("", text)):
        if "..." not in span and not re.search(r"\bNAME\b|\bFILE\b", span):
            yield from _of_lines(_name(page), [span])


def _of_lines(place: str, lines: list[str]) -> Iterator[Command]:
    """Commands of lines; one goes on in the next line behind a backslash or inside quotes."""
    rest = list(lines)
    while rest:
        line = rest.pop(0)
        if not START.match(line):
            continue
        while (words := _words(line)) is None and rest:
            line = f"{line[:-1]} {rest.pop(0)}" if line.endswith("\\") else f"{line}\n{rest.pop(0)}"
        assert words, f"{place}: {line}"
        where = next((i for i, word in enumerate(words) if PROGRAM.match(word)), None)
        if where is None or words[where + 1 :] == []:  # a program that is only mentioned
            continue
        fails_with = rest[0].removeprefix("error: ") if rest and rest[0].startswith("error: ") else ""
        program = PROGRAM.match(words[where])[1]  # type: ignore[index]
        remark = line.partition("# ")[2]
        yield Command(place, tuple(words[:where]), program, tuple(words[where + 1 :]), remark, fails_with)


def _words(line: str) -> list[str] | None:
    """What a shell makes of it, redirections left out; None if it goes on."""
    if line.endswith("\\"):
        return None
    try:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=">|&;")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words = list(lexer)
    except ValueError:
        return None
    end = next((i for i, word in enumerate(words) if set(word) <= set(">|&;")), len(words))
    return words[:end]
