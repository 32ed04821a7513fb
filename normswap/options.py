"""Options that are declared once, as fields of a dataclass; the command line reads these."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from normswap.errors import NormswapError

_OPTION = "normswap.option"


@dataclass(frozen=True)
class Option:
    """A field as the command line shows it: ``--name``, with dashes.

    ``help``: what it does. ``choices``: the values that it takes, any if empty. ``metavar``: what
    stands for the value in the help text. ``type``: of the value; bool is a flag.
    """

    help: str
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    type: type = str


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    metavar: str | None = None,
    type: type | None = None,
) -> Any:
    """A field of a dataclass that is an option, in Python and on the command line.

    ``type``: by default that of ``default``, or str where that is None. A bool is a flag.

    Example: ``tokens: str = option("all", "Which tokens to fit.", choices=("all", "class"))``
    """
    kind = type or (str if default is None else default.__class__)
    shown = Option(help, tuple(choices), metavar, kind)
    return field(default=default, metadata={_OPTION: shown})


def options_of(kind: Any) -> Iterator[tuple[str, Option]]:
    """The options of a dataclass, or of an instance, by the names of its fields."""
    for each in dataclasses.fields(kind):
        if _OPTION in each.metadata:
            yield each.name, each.metadata[_OPTION]


def check_choices(options: Any, dashes: bool = True) -> None:
    """Raises NormswapError for a field whose value is none of its choices.

    ``dashes``: call it ``--name`` in the message, as on the command line.
    """
    for name, shown in options_of(options):
        value = getattr(options, name)
        if shown.choices and value is not None and value not in shown.choices:
            flag = f"--{name.rstrip('_').replace('_', '-')}" if dashes else name
            raise NormswapError(f"{flag}: '{value}' is none of {', '.join(shown.choices)}")
