"""Every example of the documentation runs: Python as it stands, commands as far as their words."""

from __future__ import annotations

import ast
import io
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from itertools import takewhile
from pathlib import Path
from textwrap import dedent

import pytest
from typer.main import get_command

from sinkgate.cli import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/pages/**/*.md"))]


def blocks(text: str, language: str) -> Iterator[tuple[int, str]]:
    """The fenced blocks of a language, each with the number of lines above it."""
    for match in re.finditer(rf"^( *)```{language}\b.*\n((?:.*\n)*?)\1```$", text, re.MULTILINE):
        yield text.count("\n", 0, match.start(2)), dedent(match[2])


def run(code: str, above: int, name: str, names: dict[str, object]) -> None:
    """Runs a block, and compares what each statement prints with the comments ``#> `` beneath it, where there are any."""
    lines, checked = code.splitlines(), 0
    for statement in ast.parse(code).body:
        promised = list(takewhile(lambda line: line.startswith("#>"), map(str.strip, lines[statement.end_lineno :])))
        module = ast.increment_lineno(ast.Module([statement], []), above)
        with redirect_stdout(io.StringIO()) as output:
            exec(compile(module, name, "exec"), names)
        if promised:
            assert [f"#> {line}".rstrip() for line in output.getvalue().splitlines()] == promised
        checked += len(promised)
    assert checked == code.count("#>"), "a comment #> stands beneath no statement"


def commands(text: str) -> Iterator[str]:
    """Return the arguments of ``sinkgate`` in each command of the blocks of Bash."""
    for _, code in blocks(text, "bash"):
        yield from re.findall(r"(?:^|-m |bin/|&& )sinkgate +(.*?)(?: &&|$)", code.replace("\\\n", " "), re.MULTILINE)


def parse(line: str) -> None:
    """Reads a command as the command line does, and does not run it."""
    group = get_command(cli)
    context = group.make_context("sinkgate", shlex.split(line, comments=True))
    name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
    command.make_context(name, rest, parent=context)


def pages_with(language: str) -> list:
    pages = [page for page in PAGES if any(blocks(page.read_text(encoding="utf-8"), language))]
    return [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in pages]


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_runs_and_prints_what_the_page_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for above, code in blocks(page.read_text(encoding="utf-8"), "python"):
        run(code, above, str(page), names)


COMMANDS = [page for page in pages_with("bash") if page.id != "docs/pages/guides/reproduce.md"]  # test_reproduce.py


@pytest.mark.parametrize("page", COMMANDS)
def test_the_command_line_knows_every_command_and_option(page):
    for line in commands(page.read_text(encoding="utf-8")):
        parse(line)


@pytest.mark.parametrize("line", ["askk picture.png", "ask picture.png", "ask picture.png Why? --gate x", "sinks"])
def test_a_command_that_does_not_exist_is_noticed(line):
    with pytest.raises(Exception, match="No such|Missing"):
        parse(line)


def test_commands_are_found_in_every_form():
    text = "```bash\nsinkgate models  # names\nmake && sinkgate info \\\n  --model x && ls\ntorchrun -m sinkgate sweep\nls sinkgate x\n```\n"
    assert [shlex.split(line, comments=True) for line in commands(text)] == [
        ["models"],
        ["info", "--model", "x"],
        ["sweep"],
    ]


@pytest.mark.parametrize(
    "code", ["print(1)\n#> 2", "for i in (1, 2):\n    print(i)\n    #> 1", "if 1:\n    #> 1\n    print(1)", "1 / 0"]
)
def test_an_example_that_is_not_true_is_noticed(code):
    with pytest.raises((AssertionError, ZeroDivisionError)):
        run(code, 0, "page.md", {})


def test_an_example_that_is_true_passes():
    run("for i in (1, 2):\n    print(i)\n    #> 1\n    #> 2\nprint(3)", 0, "page.md", {})
