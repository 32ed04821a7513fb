"""The exception that users see, and how other libraries' errors and messages are shown."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterable, Iterator

_LONGEST = 200


class NormswapError(Exception):
    """Bad input or usage.

    The message is one line that names the file or the site, says what is wrong and what to do.
    The command line prints it and exits with status 2. Names in it may come from files: they are
    made ``visible`` here, for every way in which an error is shown.

    Examples:
        >>> try:
        ...     load("missing.onnx")
        ... except NormswapError as error:
        ...     print(error)
    """

    def __init__(self, message: object) -> None:
        super().__init__(visible(message))


class Endless(BaseException):
    """A run that was stopped, since a loop in the file may never end. No Exception, because work
    on a model goes on after those with the next run. ``Model`` makes a NormswapError of it.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without a trailing stop; its class if it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0].rstrip(".:") if lines else type(error).__name__
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def closest(name: str, names: Iterable[str], most: int = 3) -> list[str]:
    """Those of ``names`` that ``name`` may have been meant for, at most ``most``: the nearest by
    edit distance, with no more than a mistake in three characters. A name that only goes on
    further counts as equal: "vit_tinny" is one mistake away from "vit_tiny_patch16_224".

    Example: ``closest("blocs", ["blocks.0", "head"])`` is ``["blocks.0"]``.
    """
    wanted = name.lower()
    scored = sorted((_distance(wanted, other.lower()), len(other), other) for other in set(names))
    limit = len(wanted) // 3
    return [other for distance, _, other in scored if distance <= limit < len(wanted)][:most]


def _distance(word: str, text: str) -> int:
    """The fewest insertions, deletions and substitutions that make a beginning of ``text`` of
    ``word`` (Levenshtein 1965; by rows)."""
    text = text[: 2 * len(word)]
    row = list(range(len(text) + 1))
    for index, character in enumerate(word, 1):
        left, row[0] = row[0], index
        for column, other in enumerate(text, 1):
            changed = left + (character != other)
            left = row[column]
            row[column] = min(changed, left + 1, row[column - 1] + 1)
    return min(row)


def root_cause(error: BaseException) -> BaseException:
    """The first error in the chain of causes of ``error``."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def visible(text: object, keep: str = "") -> str:
    """``text`` with an escape for each character that a terminal obeys or hides: ``\\x1b``,
    ``\\u202e``, ``\\n``; those in ``keep`` stay as they are."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else escaped(c) for c in text)


def escaped(character: str) -> str:
    """The escape of one character, as Python writes it."""
    return character.encode("unicode_escape").decode("ascii")


def plain(name: object) -> str:
    """A name read from a file, made fit for one line: visible and short."""
    text = str(name)
    return visible(text) if len(text) <= _LONGEST else f"{visible(text[:_LONGEST])}..."


@contextlib.contextmanager
def at_fault(name: str, fault: Callable[[], str]) -> Iterator[None]:
    """The boundary between what a model's file can cause and errors of our own.

    ``name``: of the file. ``fault``: says why no runtime can run the model, '' where one can. If
    there is such a reason, an unexpected error of the block is the file's fault, and becomes a
    NormswapError with it. Else it is ours, and passes.
    """
    try:
        yield
    except NormswapError:
        raise
    except MemoryError as error:
        reason = f"it takes more memory than there is ({first_line(error)})"
        raise NormswapError(f"{name}: {reason}") from error
    except Exception as error:
        reason = fault()
        if not reason:
            raise
        raise NormswapError(f"{name}: is damaged ({plain(reason)}); export it again") from error


@contextlib.contextmanager
def blaming(name: str, fault: Callable[[], str], short: str = "") -> Iterator[None]:
    """``at_fault``, and a NormswapError of the block that lacks the file's ``name``, and its
    ``short`` form, gets it."""
    try:
        with at_fault(name, fault):
            yield
    except NormswapError as error:
        if name in str(error) or (short and short in str(error)):
            raise
        raise NormswapError(f"{name}: {error}") from error


@contextlib.contextmanager
def quiet(*loggers: str, stderr: bool = False) -> Iterator[None]:
    """While the block runs, drops messages below 'critical' of the named loggers, and with
    ``stderr`` everything printed to the standard error stream."""
    held = [(logging.getLogger(name), logging.getLogger(name).level) for name in loggers]
    with contextlib.ExitStack() as stack:
        for logger, level in held:
            logger.setLevel(logging.CRITICAL)
            stack.callback(logger.setLevel, level)
        if stderr:
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield
