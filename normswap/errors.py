"""The exception that users see, and how other libraries' errors and messages are shown."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator

_LONGEST = 200


class NormswapError(Exception):
    """Bad input or usage.

    The message is one line that names the file or the site, says what is wrong and what to do.
    The command line prints it and exits with status 2.

    Examples:
        >>> try:
        ...     load("missing.onnx")
        ... except NormswapError as error:
        ...     print(error)
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without a trailing stop; its class if it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0].rstrip(".:") if lines else type(error).__name__
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def root_cause(error: BaseException) -> BaseException:
    """The first error in the chain of causes of ``error``."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def plain(name: object) -> str:
    """A name read from a file, made fit for one line: short, without control characters."""
    text = "".join(c if c.isprintable() else "?" for c in str(name)[:_LONGEST])
    return text if len(str(name)) <= _LONGEST else f"{text}..."


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
