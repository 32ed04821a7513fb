"""``help(ns.swap)`` is enough to use it: what the docstrings of the public names have to say."""

from __future__ import annotations

import inspect
import re
from typing import Any

import click
import pytest

import normswap as ns
from normswap import passes, pipelines
from normswap.io.sources.options import OPTIONS
from normswap_cli.main import main
from tests.docs.pages import DOCS

FUNCTIONS = [name for name in ns.__all__ if inspect.isfunction(getattr(ns, name))]
CLASSES = [
    *(kind for name in ns.__all__ if isinstance(kind := getattr(ns, name), type)),
    *(kind for name in passes.__all__ if isinstance(kind := getattr(passes, name), type)),
]


def _section(thing: Any, title: str) -> str:
    """What stands below ``title`` in a docstring, indented."""
    found = re.search(rf"^{title}:\n((?:    .*\n|\n)*)", inspect.getdoc(thing) + "\n", re.MULTILINE)
    return found[1] if found else ""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_says_what_it_takes_gives_and_raises(name: str) -> None:
    function = getattr(ns, name)
    described = re.findall(r"^    (\w+): ", _section(function, "Args"), re.MULTILINE)
    assert described == list(inspect.signature(function).parameters)
    typed = function.__annotations__
    assert set(typed) == {*described, "return"}
    assert typed["return"] in ("None", None) or _section(function, "Returns")
    if name != "locate":  # which takes any model
        assert "NormswapError: " in _section(function, "Raises")
    assert f"{name}(" in _section(function, "Examples")


@pytest.mark.parametrize("kind", dict.fromkeys(CLASSES), ids=lambda kind: kind.__name__)
def test_a_class_has_an_example_and_describes_its_options(kind: type) -> None:
    assert _section(kind, "Examples")
    told = "".join(inspect.getdoc(each) or "" for each in kind.__mro__ if each is not object)
    for name, annotation in kind.__annotations__.items():
        internal = name.startswith("_") or "ClassVar" in str(annotation)
        assert internal or re.search(rf"\b{name}\b", told), name


@pytest.mark.parametrize("name", ["OnnxPass", "FxPass", "ProgramPass", "apply_to_module"])
def test_a_pipeline_has_a_docstring(name: str) -> None:
    assert inspect.getdoc(getattr(pipelines, name))


def test_every_command_and_option_has_a_help_text() -> None:
    assert isinstance(main, click.Group)
    for name, command in main.commands.items():
        assert command.help, name
        for parameter in command.get_params(click.Context(command)):
            told = isinstance(parameter, click.Option) and parameter.help
            assert told or isinstance(parameter, click.Argument), parameter


def test_every_option_behind_a_models_name_stands_in_the_table() -> None:
    page = (DOCS / "reference" / "models-and-data.md").read_text()
    assert set(re.findall(r"^\| `\?(\w+)=", page, re.MULTILINE)) == set(OPTIONS)
