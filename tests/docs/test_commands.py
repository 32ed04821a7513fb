"""What README.md and docs/ tell a user to type works, and prints what they show.

A block of ``sh`` or ``python`` is run, in one folder for all pages: a file's name means the same
on every page. A block of ``text`` behind it is what it prints. Under a comment 'parsed only: WHY'
the options are checked and nothing is run, and so it is under 'slow: WHY' but in ``make test-all``.
Commands of other programs are checked against the files that they use.
"""

from __future__ import annotations

import ast
import contextlib
import io
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from normswap_cli.main import main
from tests.docs.pages import PAGES, ROOT, Block, Command, blocks, commands, matches, name_of
from tests.effort import ALL

_NOT_RUN = ("parsed only: ", "a listing: ", *(() if ALL else ("slow: ",)))


class Shell:
    """Runs commands in a folder, each once: the same line prints the same again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._printed: dict[str, str] = {}
        self._written: dict[str, str] = {}

    def run(self, command: Command) -> str:
        """What ``command`` prints, on both streams."""
        self._check_output(command)
        if command.line not in self._printed:
            result = CliRunner().invoke(main, command.words[1:], prog_name="normswap")
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                raise result.exception
            assert result.exit_code == command.status, result.output
            self._printed[command.line] = result.output
        return self._printed[command.line]

    def _check_output(self, command: Command) -> None:
        if "-o" in command.words:
            output = command.words[command.words.index("-o") + 1]
            other = self._written.setdefault(output, command.line)
            assert other == command.line, f"{output} is also what '{other}' writes"


@pytest.fixture(scope="module")
def shell(example_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    folder = tmp_path_factory.mktemp("shell") / "files"
    shutil.copytree(example_files, folder)
    return Shell(folder)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_does_what_it_says(
    page: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shell.folder)
    names: dict[str, Any] = {"__name__": "page"}  # what its blocks of Python share
    printed, idle = "", False
    for block in blocks(page):
        if block.language != "text":
            idle = block.note.startswith(_NOT_RUN)
        if block.language == "sh":
            printed = "".join(_did(command, shell, idle) for command in commands(block))
        elif block.language == "python":
            printed = _executed(block, names, idle)
        elif block.language == "text" and not idle:
            assert matches(block.text, printed), (
                f"{block.text}\nis not what was printed:\n{printed}"
            )


def _executed(block: Block, names: dict[str, Any], idle: bool) -> str:
    if block.text.startswith("--8<--"):
        return ""
    code = compile(ast.parse(block.text), "page", "exec", dont_inherit=True)
    printed = io.StringIO()
    if not idle:
        with contextlib.redirect_stdout(printed):
            exec(code, names)
    return printed.getvalue()


def _did(command: Command, shell: Shell, idle: bool) -> str:
    if command.words[0] == "normswap" and not idle:
        return shell.run(command)
    checks: dict[str, Callable[[list[str]], None]] = {
        "normswap": _check_parsed, "torchrun": _check_torchrun, "make": _check_make,
        "pip": _check_pip, "python": _check_benchmark, "pre-commit": lambda words: None,
    }  # fmt: skip
    checks[command.words[0]](command.words)
    return ""


def _check_parsed(words: list[str]) -> None:
    """Click takes the options."""
    assert isinstance(main, click.Group)
    command = main.commands[words[1]]
    with command.make_context(words[1], words[2:]):
        pass


def _check_torchrun(words: list[str]) -> None:
    _check_parsed(words[words.index("normswap") :])


def _check_make(words: list[str]) -> None:
    for target in words[1:]:
        assert "=" in target or f"\n{target}:" in (ROOT / "Makefile").read_text(), target


def _check_pip(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in words[2:]:
        what, _, extras = word.rstrip("]").partition("[")
        if what == "." or what.startswith("dist/"):
            assert not extras or set(extras.split(",")) <= project["optional-dependencies"].keys()
            assert what == "." or what == f"dist/normswap-{project['version']}-py3-none-any.whl"


def _check_benchmark(words: list[str]) -> None:
    assert words[1] == "-m"
    assert (ROOT / f"{words[2].replace('.', '/')}.py").is_file()
    sources = "".join(path.read_text() for path in (ROOT / "benchmarks").glob("*.py"))
    for word in words[3:]:
        flag = word.strip("[]")
        assert not flag.startswith("--") or f'"{flag}"' in sources, word


def test_what_is_not_run_says_why() -> None:
    for page in PAGES:
        for block in blocks(page):
            why = block.note.partition(": ")[2]
            assert not block.note.startswith(("parsed", "a listing", "slow")) or why, name_of(page)


def test_output_matches_with_ellipses() -> None:
    assert matches("a ... c\n...\nlast\n", "a b c   \nx\ny\nlast  \n")
    assert matches("...\nlast\n", "last\n")
    assert not matches("a\nlast\n", "a\nb\nlast\n")
    assert not matches("a ... c\n", "a b\nc\n")
